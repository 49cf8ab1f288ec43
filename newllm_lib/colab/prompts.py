"""The ten questions of each notebook: always the same, so that answers can be compared from run to run."""

DIALOGUE = (
    "Hello! How are you?",
    "What did you do today?",
    "What is your name?",
    "Do you like music?",
    "What are you going to do at the weekend?",
    "I am so tired.",
    "Can you help me, please?",
    "What would you like to eat?",
    "It is raining again.",
    "Goodbye, see you tomorrow!",
)
INSTRUCTIONS = (
    "What is the Python module json for?",
    "What does os.path.join do in Python?",
    "Explain the Python class collections.Counter.",
    "Describe the Python module random.",
    "Name three animals that live in the sea.",
    "What is the capital of France?",
    "Why is the sky blue?",
    "Give me one tip for learning a language.",
    "Write a sentence about a cat.",
    "What is a computer?",
)
# For a model that has learned both to converse and to follow instructions.
CONVERSATION = (*DIALOGUE[:5], *INSTRUCTIONS[5:])
