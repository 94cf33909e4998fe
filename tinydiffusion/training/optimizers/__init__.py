"""AdamW and Muon, with steps that can be called off."""
