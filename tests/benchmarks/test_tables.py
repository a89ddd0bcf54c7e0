"""Tables in the docs show the results in benchmarks/results."""

import pytest

from benchmarks import tables
from benchmarks.measure import RESULTS
from data_pipelines.errors import InputError


@pytest.mark.parametrize("page", tables.pages(), ids=lambda page: page.name)
def test_tables_of_page_equal_results(page):
    text = page.read_text()
    assert tables.update_page(text) == text, "run: python -m benchmarks.tables"


def test_every_table_and_every_result_is_shown():
    shown = {
        name for page in tables.pages() for _, name, _ in tables.BLOCK.findall(page.read_text())
    }
    assert shown == set(tables.TABLES)
    sources = {source for name in shown for source in tables.TABLES[name]().sources}
    assert sources == {path.stem for path in RESULTS.glob("*.json")}


def test_unknown_table_is_rejected():
    with pytest.raises(InputError, match="'speeds'"):
        tables.update_page("<!-- table: speeds -->\n<!-- end of table -->\n")


def test_block_without_end_leaves_the_rest_of_the_page():
    text = "<!-- table: exactness -->\nprose\n"
    assert tables.update_page(text) == text
