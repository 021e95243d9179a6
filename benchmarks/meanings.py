"""What the figures of each benchmark mean, in what unit, and what PATH in its command stands for: for the page."""

#: By the module of the benchmark.
MEANINGS = {
    "data": "What it takes to turn text into tokens and tokens into batches. MB are a million bytes of "
    "text. PATH: a file of titles, one a line.",
    "evaluation": "CPU seconds of one validation pass, beside a loop of `F.cross_entropy` and `topk` over all "
    "logits, with the same network and batches. A ratio below 1: ours takes less. `loss apart` "
    "is the relative difference of the two losses, `hits apart` the difference in tokens that "
    "are a first choice or among the first five. PATH: a file of titles, one a line.",
    "generate": "Tokens that a GPT-2 of 6 layers and 384 channels writes in a second, greedily, for one "
    "prompt and for 16 at once, all rows counted. The mark over transformers is 2.5.",
    "memory": "Peak memory of a process that trains GPT-2 124M for two steps of 4 rows of 512 tokens.",
    "overhead": "Time of a training step through `fit`, over that of a loop written by hand with the same "
    "network, batches and optimizer. 1 is no overhead.",
    "scaling": "Training speed of a small GPT (4 layers of 128 channels, block of 128) as one size of it "
    "changes. A FLOP is a floating-point operation of a training step; tokens/s counts trained "
    "tokens.",
    "shakespeare_char": "Validation loss on tiny Shakespeare's characters with nanoGPT's split of the text, beside "
    "the figure in nanoGPT's README for a GPU. PATH: the text.",
    "startup": "Wall seconds of a process from its start: `help` and `generate` (100 tokens) to their end, "
    "`fit` to its first training step, and two imports for comparison. Warm: the files are in "
    "the system's cache. Cold: they are read from the disk.",
    "time_to_loss": "Validation loss on tiny Shakespeare's characters in the time that the training command of "
    "nanoGPT's README takes for a CPU. A budget is a part or a multiple of that time, and "
    "seconds are wall seconds of the whole process. PATH: a clone of nanoGPT; the text.",
    "train_speed": "Tokens trained in a second: the median of the rounds, with the least and the most. `fit`, "
    "`fit_compiled` (with `model.compile`) and `bare` (a loop written by hand) train our "
    "network as GPT-2 in float32, like the peers; `recommended` trains our default network with "
    "the settings that the docs name as fastest. A ratio above 1: ours is faster. PATH: a clone "
    "of nanoGPT.",
}
