"""What the command line and Python can ask for: one file a verb. Open `finetune` first."""
