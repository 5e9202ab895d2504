"""What tests build on, ours and those of our users: graphs to edit, models of them, invariants, servers, fixtures.

Nothing here needs pytest or Hypothesis but :mod:`sv_pipeline.testing.fixtures`, which is a plugin of pytest.
"""
