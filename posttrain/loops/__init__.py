"""One file per way of learning; each loop fits a screen."""
