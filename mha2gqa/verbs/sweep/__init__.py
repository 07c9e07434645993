"""What `sweep` needs: every way to convert, its text, its measurements, and the frontier that they make.

run         the order of everything
ways        the combinations, as options of `convert`
steps       one step after the other
texts       one text divided into calibration and evaluation
measuring   a converted checkpoint beside its original, by verify's own functions; single layers of it
outcome     the report: points, the frontier, the recommended number of groups
store       the file that a later run goes on from
words       the report as words, for the console and the page
page        the page, with its plots
"""
