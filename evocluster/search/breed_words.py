"""What breeding begins with: ways to think of a task, advice on changing a prompt, and ways to change the advice.

The three lists play the parts that thinking styles, mutation prompts and hyper-mutation prompts have in PromptBreeder
(Fernando et al. 2023, section 3.2); the texts are our own. Mutation prompts evolve from here on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

STYLES = (
    "Picture the most careless reader of your instruction and leave them no way to go wrong.",
    "Ask what the very first thing to look at in an input is.",
    "Think of two inputs that look alike and deserve different answers; say what tells them apart.",
    "Begin from the shape of the finished answer and work back to what has to be known for it.",
    "Think like a clerk who does a thousand of these a day and has a fixed routine.",
    "Think like an editor who strikes out every word that does no work.",
    "Think like an examiner who knows where the traps of a question lie.",
    "Think like a teacher who explains the rule before its exceptions.",
    "Think like a lawyer who closes loopholes.",
    "Think like a translator: what is meant counts, not which words were used.",
    "Name the one quality of an input on which everything turns.",
    "Ask which parts of an input are noise and can be passed over.",
    "Weigh what speaks for each possible answer before settling on one.",
    "Look for the answers that can be ruled out first.",
    "Ask what somebody in a hurry would answer, and why that would be wrong.",
    "Set down a short checklist that can be ticked off.",
    "Describe the intention behind an input rather than its surface.",
    "Find the one sentence that an expert would tell a beginner.",
    "Settle doubtful cases by a rule that is fixed beforehand.",
    "Imagine that the answer is read by a machine that forgives nothing.",
    "Say what to do when something is missing from the input.",
    "Go from the general kind of a case to its particular kind.",
    "Compare an input with a typical case of each kind.",
    "Hold the first answer against the input once more before giving it.",
    "Restate the input in a few plain words, and answer those.",
    "Give a role to whoever answers, and let the role bring its habits along.",
    "Ask what the person who sent the input hopes to get back.",
    "Keep reading, deciding and writing apart, as three acts.",
    "Prefer the plain reading of an input to the clever one.",
    "Look for the shortest way from an input to a right answer.",
)
"""Ways to think of a task; one is drawn where a prompt or a piece of advice is written from nothing."""

MUTATIONS = (
    "Tighten this instruction until no word can be spared, and lose nothing that it asks for.",
    "Write this instruction anew for somebody who has never seen the task.",
    "Put the most important demand first and everything else after it.",
    "Add one sentence that warns of the mistake that is made most easily.",
    "Turn this instruction into two or three short steps.",
    "Say exactly what the answer may contain, and that nothing else may be in it.",
    "Put a definite word in place of every vague one in this instruction.",
    "Give whoever follows this instruction a fitting profession, and speak to them as such.",
    "Add a rule for cases that fit two answers at once.",
    "Change the tone: write it as a strict order.",
    "Change the tone: write it as a friendly request among colleagues.",
    "Keep the aim of this instruction and choose another way to it.",
    "Let the instruction ask for a short look at the evidence before the answer.",
    "Let the instruction demand the answer at once, with nothing before it.",
    "Add what a careful expert would look at and a layman would miss.",
    "Take this instruction apart, keep its best thought, and build a new one around it.",
    "Write it as a rule that is followed by its exception.",
    "Explain in half a sentence why the answer matters, then say what to do.",
    "Say what the input is, what is wanted of it, and in which form, in this order.",
    "Write out what this instruction only implies.",
    "Make it half as long by keeping only what is needed.",
    "Put it as a question that the answer settles.",
    "Name the features of an input that decide, and tell to ignore the others.",
    "Let it ask for one silent check of the answer before it is given.",
    "Write it so that a child of ten could follow it.",
    "Write it in the language of a technical standard, with must and must not.",
    "Start from the most common case and then widen it to the rare ones.",
    "Describe what a perfect answer looks like instead of how to get there.",
    "Forget how this instruction is worded; ask what it is for, and write that.",
    "Put verbs that say what to do in place of abstract nouns.",
)
"""Advice on how to change a prompt: the first mutation prompts; individuals that carry none draw one of these."""

HYPER = (
    "Reword this advice so that it leads to bolder changes.",
    "Reword this advice so that it is more definite about what to change.",
    "Cut this advice down to its core.",
    "Turn this advice round where the opposite could help as well.",
    "Add to this advice a second change that goes well with the first.",
    "Make this advice easier to follow.",
    "Write another piece of advice that whoever likes this one would give too.",
    "Say this advice as a demanding teacher would.",
    "Widen this advice, so that it works for any instruction.",
    "Narrow this advice to the one part of an instruction that matters most.",
    "Find what this advice overlooks, and write advice that sees to it.",
    "Take the reason behind this advice, and write new advice for the same reason.",
)
"""How to change advice: hyper-mutation prompts. They do not evolve, as in the paper."""


def drawn(texts: Sequence[str], rng: np.random.Generator) -> str:
    """One of them."""
    return texts[int(rng.integers(len(texts)))]
