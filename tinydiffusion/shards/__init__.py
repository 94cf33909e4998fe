"""Reading of tar files of captioned pictures, in an order that is a pure function of a seed."""
