"""Command lines that must be refused, for `compare_cases.py`: their messages and exit codes are compared.

`REFUSALS` has the lines of each case, one a row, and `FILES` what lies in the case's folder before. `{llama}` is a tiny
checkpoint with 4 KV heads and a tokenizer, `{models}` the folder of all tiny checkpoints.
"""

from collections.abc import Mapping

REFUSALS: Mapping[str, str] = {
    "usage": """
        convert
        convert {llama}
        convert {llama} --groups abc
        convert {llama} --groups 1.5
        convert {llama} -g 2 --method median
        convert {llama} -g 2 --grouping zigzag
        convert {llama} -g 2 --refine polish
        convert {llama} -g 2 --colour
        convert {llama} -g 2 --tokens 0
        convert {llama} -g 2 --tokens many
        convert {llama} -g 2 --steps 0
        convert {llama} -g 2 --dtype int8
        convert {llama} -g 2 --max-ppl-increase lots
        convert {llama} -g decoder=2,foo=1
        convert {llama} -g decoder=x
        convert {llama} -g 2 --attention all
        convert {llama} -g decoder=2 --attention cross
        convert {llama} other -g 2
        expand {llama}
        expand -o out
        inspect {llama} other
        verify made --level all
        verify made --min-top1 2
        verify made --max-kl -1
        verify made --task-path here
        uptrain made --train some
        uptrain made --objective best
        uptrain made --trainer seed
        sweep {llama} -g 4,x
        sweep {llama} --refine none,polish
        bench --batch 1,x
        bench --cache paged
        bench --engine ollama
        bench --turns 0
        demo one two
    """,
    "files-of-options": """
        convert -g 2 --config absent.yaml
        convert --config broken.yaml
        convert --config list.yaml
        convert --config unknown.yaml
        convert --config typed.yaml
        convert --config method.yaml
        convert --config good.yaml --dry-run
        uptrain --config trainer.yaml
    """,
    "groups": """
        convert {llama} -g 3 -o out
        convert {llama} -g 5 -o out
        convert {llama} -g 0 -o out
        convert {llama} -g -2 -o out
        convert {llama} -g cross=2 -o out
        convert {models}/diffllama -g 1 -o out
        convert {models}/falcon-parallel -g 2 -o out
        convert {models}/host-gpt_neo -g 2 -o out
        convert {models}/host-gptj -g 16 -o out
        convert {models}/falcon-alibi -g 1 --grouping similar -o out
        convert {models}/cohere-qk-norm -g 1 --grouping similar --method aligned -o out
        expand {llama} -o out --heads 3
        expand {llama} -o out --heads 0
        convert {llama} -g 2 --max-shard-size 5apples -o out
        convert {llama} -g 2 --max-shard-size 0GB -o out
    """,
    "places": """
        convert ./nowhere -g 2
        convert org/name -g 2
        convert org/name@revision -g 2
        convert config.json -g 2
        convert {llama}/config.json -g 2
        inspect ./nowhere
        inspect org/name
        expand ./nowhere -o out
        convert {llama} -g 2 -o mine
        convert {llama} -g 2 -o mine --force
        convert {llama} -g 2 -o mine/thesis.tex --force
        convert {llama} -g 2 -o mine/thesis.tex/out
        convert {llama} -g 2 -o {llama}/out
        convert {llama} -g 2 -o out
        convert {llama} -g 2 -o out
        convert {llama} -g 1 -o out --force --json
        convert {damaged}/nan -g 2 -o out --force
        verify out --level file
    """,
    "texts": """
        convert {llama} -g 2 -o out --data {texts}/letters.txt
        convert {llama} -g 2 -o out --method auto --refine refit --data {texts}/letters.txt
        convert {llama} -g 2 -o out --refine distil
        convert {llama} -g 2 -o out --method auto
        convert {llama} -g 2 -o out --refine refit --data absent.txt
        convert {llama} -g 2 -o out --refine refit --data org/texts
        convert {llama} -g 2 -o out --refine refit --data self --data {texts}/letters.txt
        convert {llama} -g 2 -o out --refine refit --data {texts}/empty.txt
        convert {llama} -g 2 -o out --refine refit --data {texts}/latin.txt
        convert {llama} -g 2 -o out --refine refit --data {texts}/broken.jsonl
        convert {llama} -g 2 -o out --refine refit --data {texts}/pairs.jsonl
        convert {llama} -g 2 -o out --refine refit --data {texts}/letters.jsonl --column body
        convert {llama} -g 2 -o out --refine refit --data short.txt
        convert {llama} -g 2 -o out --refine refit --data {texts}/letters.txt --context 65
        convert {llama} -g 2 -o out --refine refit --data {texts}/letters.txt --activation-memory lots
        convert {llama} -g 2 -o out --refine refit --data {texts}/letters.txt --device abacus
        convert {damaged}/no-tokenizer -g 2 -o out --refine refit --data {texts}/letters.txt
        convert {damaged}/overflow -g 2 -o out --refine refit --data {texts}/letters.txt
        convert {models}/canary -g 2 -o out --refine refit --data {texts}/letters.txt
        convert {models}/dia -g 2 -o out --refine refit --data {texts}/letters.txt
        convert {inputs}/readers/eurobert -g 2 -o out --method auto --data {texts}/letters.txt
    """,
    "verify": """
        verify
        verify {llama}
        verify nowhere
        verify broken
        verify old
        convert {llama} -g 2 -o made
        verify made --against {inputs}/references/float32
        verify made --against {inputs}/readers/qwen3
        verify made --against {damaged}/infinity --level file
        verify made --against {damaged}/truncated
        verify made --against nowhere
        verify made --data absent.txt
        verify made --data {texts}/letters.jsonl --column body
        verify made --data {texts}/empty.txt
        verify made --data {texts}/letters.txt --context 100000
        verify made --level load --device npu:7
        verify made --level file --report short.txt
        convert {llama} -g 1 -o other
        verify
    """,
    "uptrain": """
        uptrain --steps 2
        uptrain {llama} --steps 2
        convert {llama} -g 2 -o made
        uptrain made --steps 2
        uptrain made --data {texts}/letters.txt
        uptrain made --data {texts}/letters.txt --steps 2 --tokens 5M
        uptrain made --data {texts}/letters.txt --alpha 0.1
        uptrain made --data absent.jsonl --steps 2
        uptrain made --data self --data {texts}/letters.txt --steps 2
        uptrain made --data {texts}/letters.txt --steps 2 --temperature 0
        uptrain made --data {texts}/letters.txt --steps 2 --lm-weight 1.5
        uptrain made --data {texts}/letters.txt --steps 2 --hidden-weight -1
        uptrain made --data {texts}/letters.txt --steps 2 --lora-rank 0
        uptrain made --data {texts}/letters.txt --steps 2 --context 100000
        uptrain made --data {texts}/letters.txt --steps 2 --resume
        uptrain made --data {texts}/letters.txt --steps 2 --trainer colour=red
        uptrain made --data {texts}/letters.txt --steps 2 --source-column x
        uptrain made --data {texts}/letters.txt --steps 2 -o mine
        uptrain made --data {texts}/letters.txt --steps 2 --against {inputs}/references/float32
        convert {inputs}/readers/eurobert -g 2 -o masked
        uptrain masked --data {texts}/letters.txt --steps 2 --trainer use_cpu=true
        convert {inputs}/readers/t5 -g 2 -o pairs
        uptrain pairs --steps 2
        uptrain pairs --data {texts}/letters.txt --steps 2
        uptrain pairs --data {texts}/pairs.jsonl --source-column body --steps 2
        uptrain pairs --data {texts}/pairs.jsonl --column source --steps 2
        uptrain pairs --data {texts}/pairs.jsonl --target-lang de --steps 2 --trainer use_cpu=true
    """,
    "sweep": """
        sweep {llama} -g 2,3
        sweep {llama} -g 8
        sweep {llama} --methods mean,median
        sweep {llama} --methods auto
        sweep {llama} --methods ,
        sweep {llama} --refine none,refit --methods mean
        sweep {llama} --data absent.txt
        sweep {llama} --data {texts}/letters.txt --context 100000
        sweep {llama} --data {texts}/letters.txt --context 24 --activation-memory much
        sweep {llama} --data {texts}/letters.txt --context 24 -o mine
        sweep {damaged}/latent
        sweep {llama} -o short.txt -g 2 --data {texts}/letters.txt --context 24
    """,
    "bench": """
        bench
        bench nowhere
        bench --shape nothing -g 1
        bench --shape {models}/eurobert/config.json -g 1
        bench --shape {models}/llama/config.json -g 3
        convert {llama} -g 2 -o made
        bench made --context 60
        bench made --engine vllm
        bench made --engine llama.cpp
        bench made --attention flash_attention_2 --context 4
        bench made --device cuda
        bench made --memory lots --context 4
        bench made --groups 2
    """,
}

FILES: Mapping[str, Mapping[str, str]] = {
    "files-of-options": {
        "broken.yaml": "{",
        "list.yaml": "- groups",
        "unknown.yaml": "gruops: 2",
        "typed.yaml": "groups: many",
        "method.yaml": "{groups: 2, method: median}",
        "good.yaml": "groups: 2\nmethod: first\noutput: out\nas_json: true\n",
        "trainer.yaml": "trainer: 1",
    },
    "places": {"mine/thesis.tex": "mine", "config.json": "{}"},
    "texts": {"short.txt": "A FEW WORDS"},
    "verify": {"short.txt": "A FEW WORDS", "broken/mha2gqa.json": "{", "old/mha2gqa.json": '{"format": 99}'},
    "uptrain": {"mine/thesis.tex": "mine"},
    "sweep": {"mine/thesis.tex": "mine", "short.txt": "A FEW WORDS"},
}
