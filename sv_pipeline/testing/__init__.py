"""Building blocks of tests, ours and those of users: worlds, a model of edits, invariants, harness, servers, fixtures.

``pip install "sv_pipeline[testing]"`` installs what is needed in addition: pytest for `fixtures`, Hypothesis for
`machines`, networkx for `models`. The pipeline itself never imports this package.
"""
