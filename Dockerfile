# Written and read, not built: there was no builder where this was written. Its one step is the set-up that CI runs.
# docker build -t mha2gqa . && docker run --rm mha2gqa demo
# docker run --rm -v "$PWD:/work" -w /work mha2gqa convert MODEL --groups 8
# docker run --rm --entrypoint make mha2gqa demo
FROM python:3.11-slim
RUN apt-get update -qq && apt-get install -qq -y --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /mha2gqa
COPY . .
# torch for CPUs, which is a tenth of the size; for NVIDIA GPUs build with --build-arg PIP_EXTRA_INDEX_URL=
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN make .venv/.ready
ENV PATH=/mha2gqa/.venv/bin:$PATH
ENTRYPOINT ["mha2gqa"]
