"""Reading and writing of pictures: folders, captions, colours, sizes, grids."""
