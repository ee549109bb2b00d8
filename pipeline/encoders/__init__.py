"""CLIP encoders: what open_clip loads and Hugging Face's CLIP and SigLIP, as two towers and a tokenizer."""
