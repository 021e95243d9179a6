"""Methods for small corpora, one file each. `LitExtendedGPT` has an option for each, and they combine.

What each gained here (lower is better; one seed; sources are docs/headlines.md and docs/LOG.md). "Titles" is the
challenge loss after 7 epochs of 15,000 Hacker News titles, in nats per character.

- ``kneser_ney.py``: Kneser-Ney n-gram counts mixed into the prediction (Kneser and Ney 1995; Chen and Goodman 1999).
  Titles: 1.3851 without, 1.3384 with a share of 0.2, for a second of counting. 90,000 titles: 1.1271 and 1.1097.
- ``counts_gpt.py``: a GPT trained on top of such counts, for short trainings. It reads their log-probabilities and
  learns what to add to them. A row's counts leave out the part of the text that it is from (``fold_counts.py``).
  Characters of tiny Shakespeare, 100 steps: 1.4573 nats per character; mixed at the end 1.5055.
- ``token_parts.py``: embeddings of the parts that tokens share (after fastText, Bojanowski et al. 2017). Titles: 1.4257
  without, 1.3913 with, for 4 % of a step.
- ``ensemble.py``: several networks whose logits are averaged (Lakshminarayanan et al. 2017). Titles: one network
  1.3851, two 1.3605; one of the same work, wider, 1.3861.
- ``r_drop.py``: two passes with different dropout that learn to agree (R-Drop, Wu et al. 2021). Titles, 2,048 tokens a
  step: 1.3602 instead of 1.3851 (of which half the tokens a step may be 0.009), for twice the work. In the last 40 % of
  the run alone: 1.3645. Little remains of the gain beside Kneser-Ney counts at full length.
- ``sampled_softmax.py``: the training softmax over a sample of the vocabulary (Bengio and Senecal 2008; Jean et al.
  2015). It saves time: a step took 0.81 s instead of 1.17 (2,000 of 16,000 tokens). Titles: 1.3853 with the sample in
  the first 60 % of the run, 1.3851 without.
- ``ngrams.py``: embeddings of hashed n-grams, for short trainings (Huang et al. 2025). Characters of tiny Shakespeare,
  300 steps: 1.7211 nats per character without, 1.5339 with n from 2 to 6. Over many epochs it overfits: 1.9010 instead
  of 1.6179 after 20 epochs of 100,000 characters.
"""
