"""How admission is learned: a simulator, learners, and who may take the rule's place."""
