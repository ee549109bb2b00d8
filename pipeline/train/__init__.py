"""Contrastive training of open_clip's towers: exact resume, exact accumulation, a ledger of samples."""
