"""Networks: the trained noise predictors."""
