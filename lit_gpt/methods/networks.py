"""The network that a `GPTConfig` describes: one GPT, or several side by side, alone or beside counts of its text."""

from dataclasses import replace

from lit_gpt.bounds import check_fits
from lit_gpt.config import GPTConfig
from lit_gpt.methods.ensemble import GPTEnsemble
from lit_gpt.methods.kneser_ney import GPTWithCounts
from lit_gpt.model import GPT

Network = GPT | GPTEnsemble | GPTWithCounts


def network(config: GPTConfig) -> Network:
    """What `config` describes.

    Raises:
        UserError: It is larger than the memory.
    """
    check_fits(config.matrix_parameters, "config.n_embd, config.n_layer or the vocabulary")
    if config.kneser_ney:
        return GPTWithCounts(config, network(replace(config, kneser_ney=0)))
    return GPT(config) if config.members == 1 else GPTEnsemble(config)


def members_of(net: Network) -> list[GPT]:
    """The networks that learn on their own."""
    learning = learning_part(net)
    return list(learning.members) if isinstance(learning, GPTEnsemble) else [learning]


def learning_part(net: Network) -> GPT | GPTEnsemble:
    """The network without counts."""
    return net.gpt if isinstance(net, GPTWithCounts) else net
