"""ShapeScenes: drawn scenes, their captions and the exact judge that reads pictures."""
