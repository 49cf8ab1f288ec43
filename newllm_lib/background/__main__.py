"""What `start` leaves behind: the commands it was given, one after the other, until one does not come to its end."""

import json
import signal
import sys

from ..cli import main

if __name__ == "__main__":
    # A stop that comes before or after the training of a command ends it in a sentence, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(next((code for words in json.loads(sys.argv[1]) if (code := main(words))), 0))
