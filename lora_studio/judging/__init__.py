"""Which of several answers is better: votes, blind panes, win rates, whole lists of prompts."""
