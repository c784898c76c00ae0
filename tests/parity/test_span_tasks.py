"""Transformers has no head for marked stretches, but reads the encoder of a folder that has one."""

import pytest
import torch
import transformers

from unbraid.model.config import DebertaConfig
from unbraid.model.folder import architecture_of
from unbraid.model.span_heads import DebertaForEntityChoice, DebertaForSpanClassification
from unbraid.tasks.kinds import kind_of

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
V1 = {"model_type": "deberta", "position_buckets": None, "share_att_key": False, "norm_rel_ebd": "none"}


@pytest.mark.parametrize("fields", [{"position_buckets": 8}, V1], ids=["v3", "v1"])
@pytest.mark.parametrize(
    ("head", "kind"),
    [(DebertaForSpanClassification, "span-classification"), (DebertaForEntityChoice, "entity-choice")],
)
def test_the_encoder(head, kind, fields, tmp_path):
    torch.manual_seed(0)
    model = head(DebertaConfig(**SIZES, **fields, max_position_embeddings=64, type_vocab_size=0)).eval()
    for name, weight in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(tmp_path)
    assert kind_of(architecture_of(tmp_path), model.config) == kind
    theirs = transformers.AutoModel.from_pretrained(tmp_path).eval()
    ids = torch.randint(0, 50, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(ids).last_hidden_state
        torch.testing.assert_close(model.deberta(ids).last_hidden_state, expected, rtol=1e-4, atol=1e-5)
