"""What a judge is made of: its prompt, its scale, the endpoint that answers, and the ledger of what was asked."""
