"""The budget ledger: who owns the books, and lends out of them."""
