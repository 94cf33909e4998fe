"""Text encoders, from captions to text states; one per file."""
