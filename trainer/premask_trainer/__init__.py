"""The thin QLoRA trainer of premask, which streams prepared shards."""
