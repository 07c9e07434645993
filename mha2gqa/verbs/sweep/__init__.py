"""What `sweep` needs: every way to convert, its text, its measurements, and the frontier that they make.

    ways        the combinations, as options of `convert`
    texts       one text divided into calibration and evaluation
    measuring   a converted checkpoint beside its original, by verify's own functions; single layers of it
    results     the report: points, the frontier, the recommended number of groups
    store       the file that a later run goes on from
    run         one step after the other
    wording     the report as words, for the console and the page

The order of everything is in `commands/sweep.py`.
"""
