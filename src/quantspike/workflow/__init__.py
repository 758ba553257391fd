"""Put the packages together: what the stages and the command `quantspike` call.

In: the command line and params.yaml, resolved once into a run with its settings. Out: files in data/, metrics/ and
plots/, runs in MLflow, and messages on the terminal. Nothing below this package sees all of params.yaml.
"""
