"""From files to Prompts and Groups, from Samples to Batches."""
