"""A LangChain runnable as a pipeline: a prompt of the genome's, a model that is evocluster's, and a parser."""

from __future__ import annotations

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda

from evocluster import Calls, Example, Genome

ROLES = {"system": "system", "human": "user", "ai": "assistant"}


async def answer(example: Example, genome: Genome, llm: Calls) -> str:
    """The queue of a message."""

    async def model(prompt: PromptValue) -> str:
        return await llm.ask([{"role": ROLES[each.type], "content": each.text} for each in prompt.to_messages()])

    chain = (
        ChatPromptTemplate([("system", "{rubric}"), ("user", "{message}")]) | RunnableLambda(model) | StrOutputParser()
    )
    return str(await chain.ainvoke({"rubric": genome["rubric"], "message": example.input}))
