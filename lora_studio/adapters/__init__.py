"""The PEFT folders that trainings leave behind."""
