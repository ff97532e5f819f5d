"""premask: chat data for supervised fine-tuning, prepared once, offline."""
