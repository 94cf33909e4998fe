"""Feature extractors: uint8 pictures to float features, shared by the evaluators that name them."""
