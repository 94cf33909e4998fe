"""Files to pixels and back: folders, captions, colours, sizes, grids."""
