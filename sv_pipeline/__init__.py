"""sv_pipeline: from a segmentation in a bucket to a proofreadable, editable, self-healing chunked graph."""
