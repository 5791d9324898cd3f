"""Cache: answers that may be given again."""
