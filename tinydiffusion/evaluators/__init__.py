"""What is measured on pictures: one plug-in per file, the file name is the metric's name."""
