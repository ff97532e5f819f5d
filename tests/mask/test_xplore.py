import numpy as np, pytest, collections
from premask.dtypes import IGNORE_INDEX
from premask.feed.known import KnownTokenizer, sampled_markers
from premask.mask.responses import mask_responses
from premask.mask.explain import labels as spans_labels

OUT = open("/tmp/uz/xplore.txt", "a")


def test_x(template_name, masker_of, families, samples, shared_rows):
    F = families
    masker = masker_of(template_name)
    enc = masker.encoder
    own = F.family(template_name)
    names = {t.content: t.id for t in enc.added}
    known = KnownTokenizer(
        tokenizer_json=F.family_tokenizer(template_name),
        chat_template=F.source(template_name),
        special_tokens=F.variables(template_name),
        stops=[names[t] for t in [own.eos, *own.stops.split()]],
        pad=None,
    )
    try:
        markers, sought = sampled_markers(known, None)
    except Exception as e:
        OUT.write(f"{template_name}: {type(e).__name__} {e}\n")
        return
    rows = list(samples)
    for s in (
        "oasst",
        "taskmaster",
        "gsm8k",
        "codegen",
        "roleplay",
        "alpaca_zh",
        "kto",
        "glaive_en",
        "reasoning",
        "airline",
    ):
        rows += shared_rows(s, 15)
    m = masker.mask(rows)
    ex = m.examples
    got = mask_responses(ex.ids, ex.offsets, markers)
    exp = np.full(len(ex.ids), -100, np.int32)
    kinds = collections.Counter()
    shown = 0
    from premask.mask.grammar import features

    for n in range(len(ex)):
        a, b = ex.offsets[n : n + 2]
        for s, e in ex.spans[ex.span_offsets[n] : ex.span_offsets[n + 1]]:
            exp[a + s : a + e] = ex.ids[a + s : a + e]
        if (exp[a:b] != got[a:b]).any():
            f = tuple(sorted(features(rows[ex.rows[n]]) - masker.grammar.searchable))
            w = "weights" if rows[ex.rows[n]].weights else ""
            over = int(((exp[a:b] == -100) & (got[a:b] != -100)).sum())
            under = int(((exp[a:b] != -100) & (got[a:b] == -100)).sum())
            kinds[f, w, "over" if over else "", "under" if under else ""] += 1
            if not f and not w and shown < 2:
                shown += 1
                d = np.flatnonzero(exp[a:b] != got[a:b])
                i = d[0]
                OUT.write(
                    f"    row {ex.rows[n]} over {over} under {under}: "
                    + repr(
                        [
                            (enc.spell([t]), "E" if x != -100 else ".", "G" if g != -100 else ".")
                            for t, x, g in list(zip(ex.ids[a:b].tolist(), exp[a:b], got[a:b]))[max(0, i - 8) : i + 8]
                        ]
                    )
                    + "\n"
                )
    OUT.write(
        f"{template_name}: kept {len(ex)}/{len(rows)} unfollowed {sought.unfollowed} closed {sought.closed} excl {sought.exclusive} anchors {set(sought.anchors.values())} DIFF {dict(kinds)}\n"
    )
    OUT.flush()
