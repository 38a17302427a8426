"""Programs that grade: each module is one subject, each name in it something a recipe's `rewards` can point at."""
