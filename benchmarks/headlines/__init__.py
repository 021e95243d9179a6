"""The search for the lowest loss on Hacker News titles, and its page."""
