"""The planner: from a question to tasks, streamed; and from results to an answer."""
