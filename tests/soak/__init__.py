"""The soak: everything at once, at full load, with faults; then nothing may be left or have grown.

`python -m tests.soak` runs it (`make soak`). A *load* (loads/, faults.py) is one kind of work, done
in short *rounds* that verify each byte. The driver (driver.py) has many workers do rounds of random
loads, cancels some at a random moment, and holds its breath at the end of each *window*: no round
runs then, so that accounting.py can count what is left and measure memory.
"""
