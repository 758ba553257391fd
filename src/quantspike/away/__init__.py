"""Results made on another machine, such as a bare one with a GPU: run there, packed, and adopted here.

There, nothing is needed but what the stages from `download` to `simulate` need; here, DVC takes the results over.
"""
