"""The one exception of the lab that is meant for the person at the keyboard."""

RULE_GAVE_UP = "The warm-up rule cannot"
"""How the sentence begins where a rule refuses the losses: the rule's own failure, and none of the machine's."""


class UserError(Exception):
    """A mistake the user can mend: one clear sentence, no traceback, exit code 2.

    The command line prints the message alone (with `--debug`, the traceback too). Code that calls the lab as a library
    sees an ordinary exception.
    """
