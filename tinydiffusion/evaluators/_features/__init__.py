"""Feature extractors shared by evaluators: uint8 pictures to float features."""
