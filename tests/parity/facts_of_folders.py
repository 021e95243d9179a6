"""What `transformers` computes with exported folders, in a process of its own, where lit_gpt cannot be imported."""

import sys
from pathlib import Path
from typing import Any

import torch
import transformers

GREEDY = {"max_new_tokens": 20, "eos_token_id": None, "pad_token_id": 0, "do_sample": False}


def opened(folder: Path) -> tuple[Any, Any]:
    model = transformers.AutoModelForCausalLM
    net, report = model.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not any(report.values()), report
    return net, transformers.AutoTokenizer.from_pretrained(folder)


def facts(folder: Path, ids: torch.Tensor, texts: list[str]) -> dict[str, Any]:
    net, tokenizer = opened(folder)
    left, right = (tokenizer(texts, padding=True, padding_side=s, return_tensors="pt") for s in (None, "right"))
    prompts = {"input_ids": ids[:, :9], "attention_mask": torch.ones(3, 9, dtype=torch.int64)}
    first = net(ids[:, :30], use_cache=True)
    return {
        "logits": net(ids).logits,
        "last": net(ids, logits_to_keep=1).logits,
        "rest": net(ids[:, 30:], past_key_values=first.past_key_values).logits,
        "loss": net(ids, labels=ids).loss,
        "tokens": [tokenizer(text).input_ids for text in texts],
        "right": net(**right).logits[1, 0],
        "left": net.generate(**left, **GREEDY)[:, -20:],
        "greedy": net.generate(**prompts, **GREEDY)[:, 9:],
        "uncached": net.generate(**prompts, **GREEDY, use_cache=False)[:, 9:],
        "beams": net.generate(**prompts, **GREEDY, num_beams=4)[:, 9:],
    }


def refusal(net: Any, **options: Any) -> str:
    try:
        net.generate(torch.ones(1, 9, dtype=torch.int64), **options)
    except ValueError as error:
        return str(error)
    return "none"


def further_facts(folder: Path, ids: torch.Tensor) -> dict[str, Any]:
    net, tokenizer = opened(folder)
    again = folder.with_name("again")
    net.save_pretrained(again)
    tokenizer.save_pretrained(again)
    return {
        "again": opened(again)[0](ids).logits,
        "static": refusal(net, cache_implementation="static", max_new_tokens=9),
        "long": refusal(net, max_new_tokens=80),
    }


if __name__ == "__main__":
    sys.modules["lit_gpt"] = sys.modules["datamodules"] = None  # type: ignore[assignment]
    torch.set_num_threads(1)
    root, texts = Path(sys.argv[1]), sys.argv[2:]
    with torch.no_grad():
        ids = torch.load(root / "ids.pt")
        found = {name: facts(root / name, ids[name], texts) for name in ids}
        torch.save(found | {"further": further_facts(root / "make-train", ids["make-train"])}, root / "facts.pt")
