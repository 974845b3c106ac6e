"Tables as people have them: what is read, what is refused, and what a check says (I27 and so on: the bad inputs)"

import gzip
import os
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from astropy.table import Table

from gz_nbdev.catalog import (
    Finding,
    Report,
    check_catalog,
    match_ids,
    match_sky,
    read_catalog,
    read_efigi,
    read_folder,
    read_hart16,
    read_ring_catalog,
    read_table,
    split_catalog,
)
from gz_nbdev.schema import InputError, Schema, get_schema

A, B = "587722981741363294", "587722981741363323"  # two galaxies that are one float
DR5 = get_schema("dr5")


def catalog(rows: int = 4, **columns) -> pd.DataFrame:
    "A healthy catalog with the votes of dr5"
    table = pd.DataFrame(0, index=range(rows), columns=DR5.columns).assign(id_str=[f"J{i:03d}" for i in range(rows)])
    table[DR5.columns[0]] = 40
    return table.assign(**columns)


def write(path, text: str, encoding: str = "utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def errors(table, *args, **kwargs) -> str:
    return "\n".join(map(str, check_catalog(table, *args, **kwargs).errors))


# Reading


@pytest.mark.parametrize(
    "text",
    [
        f"\ufeffid_str,smooth\n{A},1\n{B},2\n",
        f"id_str;smooth\r\n{A};1\r\n{B};2\r\n",
        f"id_str\tsmooth\n{A}\t1\n{B}\t2\n",
        f'"id_str","smooth"\n"{A}","1"\n"{B}","2"\n',
        f"id_str smooth\n{A} 1\n{B} 2\n",
        f" id_str , smooth\n{A},1\n{B},2",
    ],
)
def test_i30_dialects(tmp_path, text):
    table = read_table(write(tmp_path / "t.csv", text))
    assert table.id_str.tolist() == [A, B] and table.smooth.tolist() == [1, 2]


@pytest.mark.parametrize(
    "above",
    ["#Table1\n", "# made by TOPCAT\n# on Monday\n", "\n", "\r\n   \r\n", "sep={}\n", '"sep={}"\r\n', "\ufeff# id, ra, or a name\n\n",
     '# an "open quote\n'],
)
@pytest.mark.parametrize("separator", [",", ";", "\t", " "])
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_what_stands_above_the_names(tmp_path, above, separator, suffix):
    text = f"{above.format(separator)}objid,ra,dec\n{A},1,2\n{B},3,4.5\n".replace("objid,ra,dec\n", separator.join(["objid", "ra", "dec"]) + "\n")
    text = text.replace(f"{A},1,2", separator.join([A, "1", "2"])).replace(f"{B},3,4.5", separator.join([B, "3", "4.5"]))
    path = tmp_path / f"t{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    table = read_table(path)
    assert table.to_dict("list") == {"objid": [A, B], "ra": [1, 3], "dec": [2, 4.5]}


@pytest.mark.parametrize(
    "text,names",
    [
        (f"#objid,ra\n{A},1\n{B},3\n", ["objid", "ra"]),
        (f"# made by hand\n# objid ra\n{A} 1\n{B} 3\n", ["objid", "ra"]),
        (f"#ra\tobjid\n1\t{A}\n3\t{B}\n", ["ra", "objid"]),
        (f"#,objid,ra\n1,{A},1\n2,{B},3\n", ["#", "objid", "ra"]),
    ],
)
def test_names_behind_a_hash(tmp_path, text, names):
    table = read_table(write(tmp_path / "t.txt", text))
    assert list(table) == names and table.objid.tolist() == [A, B] and table.ra.tolist() == [1, 3]


def test_separators_in_quotes_and_columns_aligned_by_spaces(tmp_path):
    quoted = read_table(write(tmp_path / "q.csv", 'id_str;"ra, dec, and so on";x\na;1;2\n'))
    assert list(quoted) == ["id_str", "ra, dec, and so on", "x"] and quoted.x.tolist() == [2]
    aligned = f"  objid                 ra    note  \n  {A}    1.5  'x'\n  {B}  10.25  \"two words\"\n"
    table = read_table(write(tmp_path / "a.dat", aligned))
    assert table.objid.tolist() == [A, B] and table.ra.tolist() == [1.5, 10.25] and table.note[1] == "two words"
    with pytest.raises(InputError, match="line 3 has 2 of 3 cells"):
        read_table(write(tmp_path / "a.dat", "id_str  ra  dec\na   1   2\nb       3\n"))


def test_faults_below_comments_are_where_they_are_said_to_be(tmp_path):
    for rows, said in (("J1,1,2\nJ2,3\n", "line 5 has 2 of 3 cells"), ("J1,1,2\nJ2,1,2,3\n", "line 5, saw 4")):
        with pytest.raises(InputError, match=said):
            read_table(write(tmp_path / "t.csv", f"# one\n\nid_str,ra,dec\n{rows}"))
    for text in ("# nothing\n# but comments\n", "\n\n", "sep=,\n"):
        with pytest.raises(InputError, match="t.csv is empty"):
            read_table(write(tmp_path / "t.csv", text))


def test_i30_quoted_newline_and_separator(tmp_path):
    table = read_table(write(tmp_path / "t.csv", 'id_str,note,x\na,"one\ntwo, three",1\nb,,2\n'))
    assert table.note[0] == "one\ntwo, three" and table.x.tolist() == [1, 2] and pd.isna(table.note[1])


def test_gzip(tmp_path):
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(f"objid,x\n{A},1\n".encode()))
    assert read_table(tmp_path / "t.csv.gz").objid.tolist() == [A]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\xff\xfe\x00",
        "id_str,x\na,1,2,3\n".encode(),
        b"id_str,x\na,1\nb,1,2\n",
        "id_str,x\nä,1\n".encode("latin-1"),
        b"x,x,id_str\n1,2,3\n",
        b'id_str,x\n"a,1\n',
    ],
)
def test_i30_what_is_no_table(tmp_path, content):
    (tmp_path / "bad.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.csv"):
        read_table(tmp_path / "bad.csv")


@pytest.mark.parametrize("name", ["bad.parquet", "bad.fits", "bad.xml", "bad.ecsv", "bad.csv.gz"])
def test_damaged_files_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"PAR1 this is nothing")
    with pytest.raises(InputError, match=name):
        read_table(tmp_path / name)


def test_wrong_names(tmp_path):
    write(tmp_path / "galaxies.csv", "id_str\na\n")
    with pytest.raises(InputError, match="did you mean 'galaxies.csv'"):
        read_table(tmp_path / "galaxie.csv")
    with pytest.raises(InputError, match="is a folder"):
        read_table(tmp_path)
    with pytest.raises(InputError, match="no reader for '.xlsx'"):
        read_table(write(tmp_path / "t.xlsx", ""))
    with pytest.raises(InputError, match="not list"):
        read_table([1])


def test_i25_long_ids_beside_a_blank(tmp_path):
    text = write(tmp_path / "t.csv", f"objid,x\n{A},1\n{B},2\n,3\n")
    assert read_table(text).objid.tolist() == [A, B, ""]
    assert "without an id" in errors(text)
    for damaged in (pd.read_csv(text), Table.from_pandas(pd.read_csv(text))):
        with pytest.raises(InputError, match="16 digits"):
            read_table(damaged)
    pd.read_csv(text).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(InputError, match="t.parquet.*16 digits"):
        read_table(tmp_path / "t.parquet")
    assert "numbers (float64), not text" in errors(pd.read_csv(text).rename(columns={"objid": "id_str"}))


def test_i26_ids_verbatim(tmp_path):
    ids = ["00123", "NA", "null", "1E5", "nan", "None", "1.50", "+7"]
    table = pd.DataFrame({"id_str": ids, "x": range(8)})
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet")
    Table.from_pandas(table).write(tmp_path / "t.ecsv", format="ascii.ecsv")
    for source in (table, *(tmp_path / f"t.{suffix}" for suffix in ("csv", "parquet", "ecsv"))):
        assert read_table(source).id_str.tolist() == ids
        assert check_catalog(read_catalog(source)).ok


@pytest.mark.parametrize("name,format", [("t.fits", "fits"), ("t.xml", "votable"), ("t.ecsv", "ascii.ecsv")])
def test_whole_numbers_become_text_digit_by_digit(tmp_path, name, format):
    table = Table({"objid": np.ma.array([int(A), int(B), 1], mask=[False, False, True]), "name": ["a", "b", "c"]})
    table = table[:2] if format == "fits" else table
    table.write(tmp_path / name, format=format)
    assert read_table(tmp_path / name).objid.tolist()[:3] == [A, B, ""][: len(table)]
    assert read_table(table).objid.tolist()[:2] == [A, B]


def test_arrow_whole_numbers_with_a_blank(tmp_path):
    pd.DataFrame({"objid": pd.array([int(A), None], dtype="Int64"), "x": [1.0, None]}).to_parquet(
        tmp_path / "t.parquet"
    )
    table = read_table(tmp_path / "t.parquet")
    assert table.objid.tolist() == [A, ""] and table.x.isna().tolist() == [False, True]


LONG = "39627322701088443", "39627322701088444"  # one float too


@pytest.mark.parametrize("name", ["TARGETID", "specid", "photo_id", "brick objects", "flux"])
def test_long_whole_numbers_beside_a_blank(tmp_path, name):
    "Digit by digit, whatever the column is called: as text where it is not whole numbers throughout"
    import pyarrow as pa
    import pyarrow.parquet as pq
    text = write(tmp_path / "t.csv", f"iauname,{name},x\nJ1,{LONG[0]},1\nJ2,{LONG[1]},2\nJ3,,3\n")
    table = pa.table({"iauname": ["J1", "J2", "J3"], name: pa.array([*map(int, LONG), None]), "x": [1, 2, 3]})
    pq.write_table(table, tmp_path / "t.parquet")
    for source in (text, tmp_path / "t.parquet", table):
        read = read_table(source)
        assert read[name].fillna("").tolist() == [*LONG, ""] and read.x.tolist() == [1, 2, 3]


def test_large_numbers_that_are_not_whole_stay_numbers(tmp_path):
    read = read_table(write(tmp_path / "t.csv", "id_str,flux,few,whole\na,1e20,1,39627322701088443\nb,inf,,39627322701088444\nc,,3,7\n"))
    assert read.flux.tolist()[:2] == [1e20, np.inf] and read.few.tolist()[::2] == [1, 3] and read.few.dtype.kind == "f"
    assert read.whole.tolist() == [*map(int, LONG), 7]


@pytest.mark.parametrize("name", ["objid", "TARGETID"])
def test_floats_in_a_second_column_of_ids(name):
    "They have lost digits, so they are left out; the galaxies are still named"
    read = read_catalog(pd.DataFrame({"iauname": ["J1", "J2"], name: [float(A), float(B)]}))
    assert read.id_str.tolist() == ["J1", "J2"] and name not in read
    loud = [f.what for f in check_catalog(read).findings if f.severity == "warning"]
    assert any(what.startswith(f"left out: the ids in column '{name}' are floats") for what in loud)
    assert name in read_catalog(pd.DataFrame({"iauname": ["J1", "J2"], name: [1.0, np.nan]}))  # of few digits none is lost


@pytest.mark.parametrize("rows", ["1,151,3,1,\n2,152,4,0,\n3,153,5,1,\n", "1,2,3,4,5\n6,7,8,9\n", "1,2,3,4\n5,6,7,8,9\n"])
def test_a_cell_too_many_is_no_index(tmp_path, rows):
    with pytest.raises(InputError, match="rows have more cells than the 4 names|cannot be read as a table of text"):
        read_catalog(write(tmp_path / "t.csv", f"subject_id,ra,dec,ring\n{rows}"))


@pytest.mark.parametrize("more", ["# made 2020\n", "#----------\n", "#\n", "# ,deg,deg\n"])
def test_lines_between_names_behind_a_hash_and_the_rows(tmp_path, more):
    separator = "," if "," in more else " "
    rows = "\n".join(separator.join(row) for row in (("J1", "2", "3"), ("J4", "5", "6")))
    read = read_catalog(write(tmp_path / "t.csv", f"# id{separator}ra{separator}dec\n{more}{rows}\n"))
    assert read.id_str.tolist() == ["J1", "J4"] and read.ra.tolist() == [2, 5]


def test_names_that_come_twice_behind_a_hash(tmp_path):
    with pytest.raises(InputError, match="column 'ra' comes twice"): read_table(write(tmp_path / "t.csv", "#id,ra,ra\n1,2,3\n"))


def test_hidden_folders_hold_no_galaxies(tmp_path):
    for name in ("a.jpg", ".new-x7/b.jpg", ".hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert read_folder(tmp_path).id_str.tolist() == ["a"]


@pytest.mark.parametrize("name", ["file_loc", "filename"])
def test_names_of_files_are_text(tmp_path, name):
    import pyarrow as pa
    text = read_catalog(write(tmp_path / "t.csv", f"id_str,{name},ra\na,0012,1\nb,,2\n"))
    assert text.file_loc.tolist() == ["0012", ""]
    assert read_catalog(pa.table({"id_str": ["a", "b"], name: [12, None]})).file_loc.tolist() == ["12", ""]
    alone = write(tmp_path / "t.csv", f"{name},ra\n00123,1\n00124,2\n")
    assert read_catalog(alone).id_str.tolist() == read_catalog(alone).file_loc.tolist() == ["00123", "00124"]
    assert read_catalog(pd.DataFrame({name: [123, 124]})).id_str.tolist() == ["123", "124"]


def test_fits_bytes_big_endian_and_pictures(tmp_path):
    table = Table(
        {"iauname": np.array([b"J1 ", b"J2"]), "z": np.array([0.5, 0.25], dtype=">f4"), "stamp": np.zeros((2, 4, 4))}
    )
    table.write(tmp_path / "t.fits")
    frame = read_table(tmp_path / "t.fits")
    assert frame.iauname.tolist() == ["J1", "J2"] and frame.z.tolist() == [0.5, 0.25] and (frame.z + 1).sum() == 2.75
    assert frame.attrs["skipped"] == ["stamp"]


def several(path, **tables):
    "A FITS file with a table under each name"
    from astropy.io import fits
    parts = [fits.BinTableHDU(Table(columns), name=name) for name, columns in tables.items()]
    fits.HDUList([fits.PrimaryHDU(), *parts]).writeto(path)
    return path


def test_the_only_table_with_ids_of_a_fits_file(tmp_path):
    path = several(tmp_path / "t.fits", GTI={"start": [1.0], "stop": [2.0]}, GAL={"objid": [int(A), int(B)], "ra": [1.0, 2.0]})
    read = read_catalog(path)
    assert read.id_str.tolist() == [A, B] and "table 'GAL' of 'GTI', 'GAL'" in " ".join(read.attrs["notes"])


@pytest.mark.parametrize("names", [("CAL", "GAL"), ("", "")])
def test_several_tables_of_galaxies_in_a_fits_file(tmp_path, names):
    from astropy.io import fits
    parts = [fits.BinTableHDU(Table({"id_str": ids, "ra": [1.0] * len(ids)}), name=n) for n, ids in zip(names, (["c"], ["a", "b"]))]
    fits.HDUList([fits.PrimaryHDU(), *parts]).writeto(tmp_path / "two.fits")
    shown = [repr(name) if name else str(i) for i, name in enumerate(names, 1)]
    with pytest.raises(InputError, match=f"two.fits holds 2 tables with ids, {shown[0]}, {shown[1]}.*hdu={shown[0]}"):
        read_catalog(tmp_path / "two.fits")
    assert read_catalog(Table.read(tmp_path / "two.fits", hdu=2)).id_str.tolist() == ["a", "b"]


def test_no_table_of_galaxies_in_a_fits_file(tmp_path):
    with pytest.raises(InputError, match="t.fits holds 2 tables, 'A', 'B', none of them with ids"):
        read_table(several(tmp_path / "t.fits", A={"x": [1]}, B={"y": [1]}))
    assert list(read_table(several(tmp_path / "one.fits", A={"x": [1]}))) == ["x"]


def test_several_tables_in_a_votable(tmp_path):
    from astropy.io.votable import from_table
    both = from_table(Table({"id_str": ["c"]}))
    both.resources.append(from_table(Table({"id_str": ["a", "b"]})).resources[0])
    both.to_xml(str(tmp_path / "two.vot"))
    with pytest.raises(InputError, match="two.vot cannot be read as votable.*Multiple tables"):
        read_table(tmp_path / "two.vot")


@pytest.mark.parametrize("suffix", ["csv", "parquet", "fits", "vot", "ecsv"])
def test_missing_text_is_missing_in_every_format(tmp_path, suffix):
    table = pd.DataFrame({"id_str": ["a", "b", "", "d"], "label": ["ring", None, "disc", None], "x": [1.5, np.nan, 2, 3]})
    path = tmp_path / f"t.{suffix}"
    if suffix == "csv": table.to_csv(path, index=False)
    elif suffix == "parquet": table.to_parquet(path)
    else:
        made = Table({"id_str": table.id_str.tolist(), "label": np.ma.array(table.label.fillna(""), dtype=str, mask=table.label.isna()), "x": table.x.to_numpy()})
        made.write(path, format={"fits": "fits", "vot": "votable", "ecsv": "ascii.ecsv"}[suffix])
    read = read_table(path)
    assert read.label.isna().tolist() == [False, True, False, True] and read.x.isna().sum() == 1
    assert read.dropna(subset=["label"]).label.tolist() == ["ring", "disc"] and read.id_str.tolist() == ["a", "b", "", "d"]


def test_two_columns_of_one_name(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    arrow = pa.Table.from_arrays([pa.array(["a", "b"]), pa.array([1, 2]), pa.array([3, 4])], names=["id_str", "ring_yes", "ring_yes"])
    pq.write_table(arrow, tmp_path / "twice.parquet")
    frame = pd.DataFrame([["a", "b"]], columns=["id_str", "id_str"])
    for source, name in ((arrow, "ring_yes"), (frame, "id_str"), (pd.DataFrame({"id_str": ["a"], 1: [2], "1": [3]}), "1")):
        with pytest.raises(InputError, match=f"column '{name}' comes twice"):
            read_table(source)
    with pytest.raises(InputError, match="twice.parquet: column 'ring_yes' comes twice"):
        read_catalog(tmp_path / "twice.parquet")


def test_named_index_is_a_column():
    assert read_table(pd.DataFrame({"x": [1]}, index=pd.Index([A], name="id_str"))).id_str.tolist() == [A]


def test_an_index_that_is_a_column_too():
    table = pd.DataFrame({"id_str": [A, B], "field": ["f", "g"], "x": [1, 2]})
    kept = table.set_index("id_str", drop=False)
    assert read_table(kept).to_dict("list") == table.to_dict("list") and list(kept) == list(table)
    assert read_table(table.set_index(["id_str", "field"])).to_dict("list") == table.to_dict("list")
    assert read_table(table.set_index(["id_str", "field"], drop=False)).to_dict("list") == table.to_dict("list")


def test_a_data_set_of_the_hub_is_no_table():
    Dataset = pytest.importorskip("datasets").Dataset
    with pytest.raises(InputError, match=r"not Dataset.*HubImages\(it\).catalog"):
        read_catalog(Dataset.from_dict({"id_str": ["a"], "x": [1]}))


# Catalogs


def test_unique_id_is_preferred_and_said():
    table = read_catalog(pd.DataFrame({"iauname": ["J1", "J1"], "subject_id": [1, 2]}))
    assert table.id_str.tolist() == ["1", "2"] and "'iauname' is not unique" in table.attrs["notes"][0]
    assert read_catalog(pd.DataFrame({"id_str": ["a", "a"], "subject_id": [1, 2]})).id_str.tolist() == ["a", "a"]


def test_ids_from_files():
    table = read_catalog(
        pd.DataFrame({"Filename": ["70342656546334671.png", "b.c.jpg"], "RA": [1.0, 2], "DEC": [0.0, 0]})
    )
    assert table.id_str.tolist() == ["70342656546334671", "b.c"] and list(table.columns[:4]) == [
        "id_str",
        "file_loc",
        "ra",
        "dec",
    ]


@pytest.mark.parametrize("place", ["J1.jpg", "images/J1.jpg", "images/J1.png", "J1/J1.png"])
def test_pictures_are_found_by_id(tmp_path, place):
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_bytes(b"x")
    assert read_catalog(pd.DataFrame({"iauname": ["J1"], "x": [1]}), root=tmp_path).file_loc.tolist() == [place]


def test_pictures_are_found_under_another_folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"x")
    table = pd.DataFrame({"id_str": ["a", "b"], "local_png_loc": ["J000/a.png", "J000/b.png"]})
    assert read_catalog(table, root=tmp_path).file_loc.tolist() == ["images/a.png", "images/b.png"]
    assert read_catalog(table).file_loc.tolist() == ["J000/a.png", "J000/b.png"]


def test_paths_of_another_system(tmp_path):
    "Written under Windows, with backslashes"
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.jpg"): (tmp_path / "images" / name).write_bytes(b"x")
    for files in (["images\\a.jpg", "images\\b.jpg"], ["D:\\survey\\a.jpg", "D:\\survey\\b.jpg"]):
        table = pd.DataFrame({"id_str": ["a", "b"], "file_loc": files})
        assert read_catalog(table, root=tmp_path).file_loc.tolist() == ["images/a.jpg", "images/b.jpg"]
        assert read_catalog(table).file_loc.tolist() == files
        assert read_catalog(table.drop(columns="id_str"), root=tmp_path).id_str.tolist() == ["a", "b"]


def test_i35_blank_votes_are_counted(tmp_path):
    table = catalog(3)
    table[DR5.columns[1]] = [1, np.nan, 3]
    table.to_csv(tmp_path / "t.csv", index=False)
    read = read_catalog(tmp_path / "t.csv")
    assert read[DR5.columns[1]].tolist() == [1, 0, 3] and read.attrs["blank_votes"] == 1
    assert "1 blank vote made 0" in str(check_catalog(read)) and check_catalog(read).ok
    assert "1 vote blank, counted as 0" in str(check_catalog(table)) and check_catalog(table).ok


def test_older_answers_of_merging_are_not_mixed_in():
    votes = pd.DataFrame(0.0, index=range(2), columns=get_schema("desi").columns).assign(
        subject_id=[1, 2], merging_merger=[3.0, 4.0]
    )
    votes["merging_neither-v1"] = [30.0, 0]
    read = read_catalog(votes)
    assert read.merging_merger.tolist() == [0, 4] and "merging counts as not asked for 1 gal" in " ".join(
        read.attrs["notes"]
    )


def test_part_of_a_campaign_is_said():
    report = check_catalog(read_catalog(catalog().drop(columns=DR5.columns[-1])))
    assert any("votes not used" in finding.what for finding in report.warnings)


RINGS = pd.DataFrame(
    {
        "iauname": list("abcdef"),
        "smooth-or-featured_featured-or-disk_fraction": [0.9, 0.9, 0.9, 0.25, 0.9, 0.9],
        "disk-edge-on_no_fraction": [0.9, 0.9, 0.9, 0.9, 0.75, 0.9],
        "rare-features_ring_fraction": [0.26, 0.04, 0.1, 0.4, 0.4, 0.25],
        "local_png_loc": [f"J000/{i}.png" for i in "abcdef"],
    }
)


def test_ring_cuts():
    rings = read_ring_catalog(RINGS)
    assert rings.id_str.tolist() == ["a", "b"] and rings.ring.tolist() == [1, 0] and rings.attrs["label"] == "ring"
    left = [finding.what for finding in check_catalog(rings).warnings]
    assert [what.split(",")[0] for what in left] == ["left out: 2 of 6 galaxies", "left out: 2 of 6 galaxies"]
    smooth = RINGS.drop(columns="smooth-or-featured_featured-or-disk_fraction").assign(
        **{"smooth-or-featured_smooth_fraction": [0.1, 0.1, 0.1, 0.75, 0.1, 0.1]}
    )
    assert read_ring_catalog(smooth).id_str.tolist() == ["a", "b"]
    basic = RINGS.drop(columns="rare-features_ring_fraction").assign(ring=[1, 0, 1, 1, 1, 0])
    assert read_ring_catalog(basic).ring.tolist() == [1, 0, 1, 0]
    with pytest.raises(InputError, match="no column 'ring'"):
        read_ring_catalog(RINGS.drop(columns="rare-features_ring_fraction"))


def test_ring_catalogue_as_published_has_its_labels():
    "The published files hold clear cases only: each gets its label, and nothing has to be said"
    clear = RINGS.iloc[:2]
    read = read_catalog(clear)
    assert read.id_str.tolist() == ["a", "b"] and read.ring.tolist() == [1, 0] and read.ring.dtype.kind == "i"
    assert read.attrs["label"] == "ring" and not check_catalog(read).warnings
    assert read_ring_catalog(clear).ring.tolist() == read.ring.tolist()


def test_no_row_is_lost_in_reading(tmp_path):
    "Labels of one's own beside the fractions of a network: the table stays as it is, whatever its columns are called"
    mine = RINGS.drop(columns="rare-features_ring_fraction").assign(ring=[1, 0, 1, 1, 0, 0])
    mine.to_csv(tmp_path / "mine.csv", index=False)
    for source in (mine, tmp_path / "mine.csv", RINGS.assign(ring=mine.ring)):
        read = read_catalog(source)
        assert read.id_str.tolist() == list("abcdef") and read.ring.tolist() == [1, 0, 1, 1, 0, 0]
        assert read.attrs["label"] == "ring"
    neither = RINGS.drop(columns="smooth-or-featured_featured-or-disk_fraction")
    assert read_catalog(neither).id_str.tolist() == list("abcdef") and "ring" not in read_catalog(neither)


def test_votes_for_rings_leave_the_unclear_without_a_label():
    read = read_catalog(RINGS)
    assert read.id_str.tolist() == list("abcdef") and read.ring.fillna(-1).tolist() == [1, 0, -1, -1, -1, -1]
    said = [finding.what for finding in check_catalog(read, label="ring").warnings]
    assert any("no label: 'ring' is blank for 4 of 6 galaxies" in what for what in said)
    assert any("4 galaxies without 'ring'" in what for what in said)


def test_other_tables_are_refused():
    for reader in (read_hart16, read_efigi):
        with pytest.raises(InputError):
            reader(pd.DataFrame({"id_str": ["a"], "x": [1]}))


# Checking


def test_healthy():
    report = check_catalog(catalog(ring=[0, 1, 0, 1], ra=10.0, dec=-5.0), "dr5", label="ring")
    assert report.ok and not report.warnings and report.raise_errors() is report


CASES = {
    "i27 duplicate ids": (dict(id_str=["a", "a", "b", "b"]), "2 rows with the id of a row above: a, b"),
    "i28 alike ids": (dict(id_str=["a", "A", "b ", "b"]), "2 rows with the id of another but for case or blanks"),
    "exponents": (dict(id_str=["5.87e+17", "5.87722981741363E+17", "a", "b"]), "2 rows with an id that was a float"),
    "point zero": (dict(id_str=["1.0", "2.0", "3.0", ""]), "3 rows with an id that was a float"),
    "number ids": (dict(id_str=[1, 2, 3, 4]), "ids are numbers"),
    "i33 fractions": ({DR5.columns[0]: 0.5}, "fractions where counts are expected"),
    "broken counts": ({DR5.columns[0]: 1.5}, "votes that are not whole numbers"),
    "i34 negative": ({DR5.columns[0]: [1, -1, 2, 3]}, f"negative votes, 1 in 1 row: {DR5.columns[0]} of J001: -1"),
    "i38 infinite": ({DR5.columns[0]: [1, np.inf, 1e308, 3]}, "infinite votes, or beyond 2^24, 2 in 2 rows"),
    "i38 minus infinite": ({DR5.columns[0]: -np.inf}, "infinite"),
    "i40 huge": ({DR5.columns[0]: 2**24 + 1}, "beyond 2^24"),
    "i41 text": ({DR5.columns[0]: "12"}, "holds str, not counts"),
    "i41 bool": ({DR5.columns[0]: True}, "holds bool, not counts"),
    "no votes at all": ({DR5.columns[0]: 0}, "no galaxy has any vote"),
    "i44 range": (dict(ra=[1, 2, 3, 361.0], dec=0.0), "1 position not on the sky"),
    "i44 swapped": (dict(ra=[10.0, -20, 5, 1], dec=[200.0, 100, 1, 2]), "RA and Dec look swapped"),
    "i44 west": (dict(ra=[10.0, -20, 5, 1], dec=0.0), "catalog['ra'] % 360"),
    "i44 infinite": (dict(ra=[10.0, np.inf, 5, 1], dec=0.0), "1 position not on the sky"),
    "i44 text": (dict(ra="12:00:00", dec=0.0), "ra is not a number"),
    "file outside": (dict(file_loc=["a/../../b.jpg", "..\\c.jpg", "ok..jpg", "d.jpg"]), "2 files outside"),
}


@pytest.mark.parametrize("columns,said", CASES.values(), ids=CASES)
def test_errors_of_a_table(columns, said):
    report = check_catalog(catalog(**columns), "dr5")
    assert said in "\n".join(map(str, report.errors))
    with pytest.raises(InputError):
        report.raise_errors()


@pytest.mark.parametrize(
    "columns",
    [
        dict(id_str=["587.0", "a", "1E5", "J1.0"]),
        {DR5.columns[0]: 2**24},
        {DR5.columns[0]: 18.0},
        dict(ra=[0, 360, np.nan, 5.0], dec=[-90, 90, 0, 0.0]),
        dict(file_loc="a..b/c.jpg"),
    ],
)
def test_fine(columns):
    assert check_catalog(catalog(**columns), "dr5").ok


def test_i27_first_five_are_shown():
    [finding] = check_catalog(catalog(20, id_str=[f"g{i // 2}" for i in range(20)])).errors
    assert finding.count == 10 and finding.examples == ("g0", "g1", "g2", "g3", "g4")


def test_i29_empty(tmp_path):
    assert "no rows" in errors(catalog().head(0), "dr5")
    assert "no rows" in errors(write(tmp_path / "t.csv", "id_str,x\n"))


def test_i31_label_with_near_names():
    assert "no column 'rings'\n    did you mean 'ring'?" in errors(catalog(ring=[0, 1, 0, 1]), label="rings")


@pytest.mark.parametrize(
    "values,said", [(1, "'ring' is '1' for every galaxy"), ("", "is blank for every"), (np.nan, "is blank")]
)
def test_label_that_teaches_nothing(values, said):
    assert said in errors(catalog(ring=values), label="ring")


def test_label_that_is_no_class():
    assert "200 different values" in errors(catalog(200, score=np.linspace(0, 1, 200)), label="score")
    assert "200 different values" in errors(catalog(200), label="id_str")


def test_label_that_is_partly_blank():
    report = check_catalog(catalog(ring=["yes", "no", "", None]), label="ring")
    assert report.ok and "2 galaxies without 'ring'" in str(report.warnings[0])


def test_i32_unused_columns_are_listed():
    report = check_catalog(catalog(redshift=0.1, note="x"), "dr5")
    assert report.ok and any(f.examples == ("redshift", "note") for f in report.findings)


def test_i36_rows_without_votes_are_said():
    votes = catalog()
    votes.loc[:1, DR5.columns[0]] = 0
    assert "2 galaxies without votes" in str(check_catalog(votes)) and check_catalog(votes).ok


@pytest.mark.parametrize("child,warned", [(11, False), (12, True)])
def test_i37_children_and_parents(child, warned):
    table = catalog(**{DR5.columns[1]: 10, "disk-edge-on-dr5_yes": child})
    report = check_catalog(table, "dr5")
    assert report.ok and bool(report.warnings) == warned


def test_i37_two_parents_are_added():
    table = catalog(**{DR5.columns[0]: 20, DR5.columns[1]: 20, "merging-dr5_none": 40})
    assert not check_catalog(table, "dr5").warnings


def test_i39_fractions():
    table = pd.DataFrame(
        {
            "id_str": list("abc"),
            **{f"{c}_fraction": v for c, v in zip(DR5.columns[:3], ([0.5, 0.5, 0], [0.5, 0.4, 0], 0.0))},
        }
    )
    assert "do not sum to 1 in 1 row: b: 0.9" in errors(table.assign(**{f"{c}_fraction": 0.0 for c in DR5.columns[3:]}))
    assert "do not sum to 1 in 1 row" in errors(
        table, Schema.from_text(f"{DR5.questions[0].name}: smooth, featured-or-disk, artifact", "x")
    )


def test_i43_both_sides():
    table = catalog(split=["train", "valid", "train", "valid"])
    assert check_catalog(table, split="split").ok
    assert "2 galaxies on both sides" in errors(table.assign(id_str=["a", "A ", "b", "b"]), split="split")
    assert "1 galaxy on both sides" in errors(table, split=table.tail(1).assign(split="valid"))
    assert "one side of the split is empty" in errors(table, split=["train"] * 4)
    with pytest.raises(InputError, match="did you mean 'split'"):
        check_catalog(table, split="splt")


def test_i43_same_place_under_two_names():
    table = catalog(2, ra=[10.0, 10.0001], dec=[0.0, 0.0], split=["train", "valid"])
    report = check_catalog(table, split="split")
    assert report.ok and "1 galaxy within 1 arcsec" in str(report.warnings[0])


def test_schema_columns_missing():
    assert "1 of the 34 vote columns of 'dr5' are missing" in errors(catalog().drop(columns=DR5.columns[5]), "dr5")
    assert "34 of the 34" in errors(pd.DataFrame({"id_str": ["a"]}), "dr5")


def test_no_id_column():
    assert "did you mean 'idstr'" in errors(pd.DataFrame({"idstr": ["a"]}))


class Seen(HTMLParser):
    "What a browser would see of a page"

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), ""

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attributes)

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize(
    "hostile",
    ["<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", "javascript:alert(1)", "\"'><b>", "a&lt;b"],
)
def test_i53_hostile_text_is_shown_as_text(hostile):
    table = catalog(id_str=[hostile, hostile, "b", "c"], label=[hostile, "x", "y", "y"], **{hostile: 1})
    page = check_catalog(table, label="label", split=[hostile, "train", "train", "train"])._repr_html_()
    page += (
        check_catalog(table, label=hostile)._repr_html_()
        + Report([Finding("ok", hostile)], title=hostile)._repr_html_()
    )
    seen = Seen()
    seen.feed(page)
    assert seen.tags <= {"table", "caption", "b", "tr", "th", "td", "code"} and seen.attributes <= {"style", "title"}
    assert hostile in seen.text


def test_report_shows_worst_first_in_every_form():
    report = Report([Finding("ok", "fine"), Finding("warning", "look"), Finding("error", "stop", 1000, ("a",), "mend")])
    assert [f.severity for f in report.findings] == ["error", "warning", "ok"] and not report.ok
    assert str(report).splitlines()[0] == "catalog: 1 error and 1 warning" and "1,000" in report._repr_html_()
    with pytest.raises(InputError, match="(?s)1 error.*stop: a.*mend"):
        report.raise_errors()


def test_i42_many_rows_are_checked_column_by_column():
    "A check must not hold all votes in memory a second time"
    import tracemalloc

    table = catalog(50_000)
    tracemalloc.start()
    assert check_catalog(table, "dr5").ok
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000 * len(DR5.columns) * 8


# Splitting and joining


def test_split_is_stable():
    many = catalog(500)
    side = split_catalog(many)
    assert (split_catalog(many.sample(frac=1, random_state=1)).sort_index() == side).all()
    assert (split_catalog(many.head(100)) == side.head(100)).all() and 0.1 < (side == "valid").mean() < 0.3
    assert (split_catalog(many, seed=1) != side).any() and (
        split_catalog(many, valid=0.4)[side == "valid"] == "valid"
    ).all()


def test_split_ignores_where_rows_stand():
    many = catalog(100).set_index(pd.Index(range(500, 600)))
    assert (
        split_catalog(many).index.equals(many.index)
        and split_catalog(many).tolist() == split_catalog(catalog(100)).tolist()
    )


def test_split_keeps_classes_and_groups():
    many = catalog(400, ring=[i % 20 == 0 for i in range(400)], field=[i // 4 for i in range(400)])
    side = split_catalog(many, 0.25, stratify="ring")
    assert (side[many.ring] == "valid").sum() == 5 and (side[~many.ring] == "valid").sum() == 95
    for options in (dict(), dict(stratify="ring")):
        side = split_catalog(many, 0.25, group="field", **options)
        assert side.groupby(many.field).nunique().max() == 1 and 0.15 < (side == "valid").mean() < 0.35


def test_split_with_ranks_moves_few():
    many = catalog(400, ring=[i % 4 == 0 for i in range(400)])
    side, more = (split_catalog(table, stratify="ring") for table in (many.head(390), many))
    assert (side != more.head(390)).sum() <= 4


@pytest.mark.parametrize(
    "options,said",
    [
        (dict(valid=0), "between 0 and 1"),
        (dict(stratify="rig"), "did you mean 'ring'"),
        (dict(group="gap"), "missing in row 1"),
        (dict(valid=0.001), "side of the split is empty"),
    ],
)
def test_split_that_cannot_be(options, said):
    with pytest.raises(InputError, match=said):
        split_catalog(catalog(ring=1, gap=["a", None, "b", "c"]), **options)


def test_match_ids():
    a, b = pd.DataFrame({"id_str": ["c", "a"], "x": [1, 2]}), pd.DataFrame({"id_str": ["a", "b", "c"], "x": [3, 4, 5]})
    assert match_ids(a, b).to_dict("list") == {"id_str": ["c", "a"], "x": [1, 2], "x_b": [5, 3]}
    with pytest.raises(InputError, match="second table repeat an id"):
        match_ids(a, pd.concat([b, b]))
    with pytest.raises(InputError, match="are numbers"):
        match_ids(a.assign(id_str=[1, 2]), b)


@pytest.mark.parametrize("blank", ["", "  ", None, np.nan])
def test_match_ids_refuses_blanks(blank):
    "Two galaxies without a name are not one"
    a, b = pd.DataFrame({"id_str": ["J1", blank], "x": [1, 2]}), pd.DataFrame({"id_str": ["J2", "J1"], "y": [1, 0]})
    for pair, which in (((a, b), "first"), ((b, a), "second")):
        with pytest.raises(InputError, match=f"1 row of the {which} table without an id: row 1"):
            match_ids(*pair)


def test_match_sky_is_one_to_one():
    a = pd.DataFrame({"id_str": ["a", "b", "c"], "ra": [10.0, 10.0001, 50.0], "dec": 20.0})
    b = pd.DataFrame({"id_str": ["x"], "ra": [10.00008], "dec": [20.0]})
    pairs = match_sky(a, b)
    assert pairs.id_str.tolist() == ["b"] and abs(pairs.separation[0] - 0.00002 * 3600 * np.cos(np.radians(20))) < 1e-4
    assert (
        len(match_sky(a, b, radius=0.01)) == 0
        and len(match_sky(a.head(0), b)) == 0
        and len(match_sky(a, b.assign(ra=np.nan))) == 0
    )
    with pytest.raises(InputError, match="first table.*not on the sky"):
        match_sky(a.assign(dec=200.0), b)


# ---- GZ DECaLS as published on Zenodo, and the Kaggle challenge


def decals(tree: str, rows: int = 3, counts: bool = True) -> pd.DataFrame:
    "A table in the published form: no campaign in the names; totals, fractions, debiased fractions or shares asked"
    columns = {"iauname": [f"J00000{i}.80+004200.0" for i in range(rows)], "ra": 1.5, "dec": -2.5, "redshift": 0.1,
               "petro_theta": 9.5, "wrong_size_statistic": 50.0, "wrong_size_warning": [i == 1 for i in range(rows)]}
    for q in get_schema(tree).questions:
        total = 10 * len(q.answers)
        if counts: columns[f"{q.text}_total-votes"] = float(total)
        else: columns[f"{q.text}_proportion_volunteers_asked"] = 0.5
        for a in q.answers:
            if counts: columns[f"{q.text}_{a.text}"] = 10.0
            columns[f"{q.text}_{a.text}_fraction"] = 1 / len(q.answers)
            if counts: columns[f"{q.text}_{a.text}_debiased"] = 1 / len(q.answers)
    return pd.DataFrame(columns)


@pytest.mark.parametrize("tree", ["dr12", "dr5"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_decals_volunteers(tmp_path, tree, suffix):
    table, path = decals(tree), tmp_path / f"gz_decals_volunteers{suffix}"
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    read, schema = read_catalog(path), get_schema(tree)
    assert read.attrs["schema"]["name"] == Schema.from_columns(list(read)).name == tree
    assert read["id_str"].tolist() == table["iauname"].tolist() and (read[schema.columns] == 10).all(axis=None)
    assert f"{schema.columns[0]}_debiased" in read and f"{schema.questions[0].name}_total-votes" in read
    assert not [c for c in read if c.startswith("bar_")] and read["ra"].tolist() == [1.5] * 3
    assert read["wrong_size_warning"].tolist() == [False, True, False]
    assert any("1 galaxy with wrong_size_warning" in note for note in read.attrs["notes"])
    assert check_catalog(read).ok and "wrong_size_warning" in str(check_catalog(read))


@pytest.mark.parametrize("tree", ["dr12", "dr5"])
def test_decals_automatic(tree):
    "Fractions carry the same names as the volunteers' do, and no votes are made up"
    read, q = read_catalog(decals(tree, counts=False)), get_schema(tree).questions[1]
    assert f"{q.answers[0].column}_fraction" in read and f"{q.name}_proportion_volunteers_asked" in read
    assert not set(get_schema(tree).columns) & set(read) and read.attrs["schema"] is None
    assert any("not counts" in note for note in read.attrs["notes"])


def test_the_old_tree_without_a_campaign_is_found_by_its_answers():
    table = decals("dr12")[["iauname", *[f"{q.text}_{a.text}" for q in get_schema("dr12").questions for a in q.answers]]]
    assert read_catalog(table).attrs["schema"]["name"] == "dr12"


def test_predictions_in_the_published_form_keep_their_names():
    "The catalogue of DESI has the tree of dr5 and no campaign: it is no table of DECaLS"
    table = decals("dr5", counts=False).rename(columns={"iauname": "id_str"}).drop(columns="wrong_size_warning")
    assert "smooth-or-featured_smooth_fraction" in read_catalog(table)


def test_decals_lacks_an_answer():
    with pytest.raises(InputError, match="it lacks bar_weak; for the first, did you mean 'bar_week"):
        read_catalog(decals("dr5").rename(columns=lambda c: c.replace("bar_weak", "bar_week")))


def test_decals_older_merging_answers():
    table = decals("dr5").assign(**{"merging_neither-v1": [5.0, 0.0, np.nan]})
    read = read_catalog(table)
    assert read["merging-dr5_none"].tolist() == [0, 10, 10]
    assert any("merging counts as not asked for 1" in note for note in read.attrs["notes"])


def kaggle(rows: int = 2) -> pd.DataFrame:
    numbers = [3, 2, 2, 2, 4, 2, 3, 7, 3, 3, 6]
    names = [f"Class{q}.{a}" for q, n in enumerate(numbers, 1) for a in range(1, n + 1)]
    return pd.DataFrame({"GalaxyID": [f"{100008 + i:06d}" for i in range(rows)], **{name: 0.125 for name in names}})


def test_kaggle_columns_stay_numbers(tmp_path):
    "37 of them as they were, beside the fractions; the id is text"
    table = kaggle()
    table.to_csv(tmp_path / "training_solutions_rev1.csv", index=False)
    read = read_catalog(tmp_path / "training_solutions_rev1.csv")
    classes = [c for c in read if c.startswith("Class")]
    assert len(classes) == 37 and read[classes].dtypes.eq("float64").all() and (read[classes] == 0.125).all(axis=None)
    assert read["id_str"].tolist() == ["100008", "100009"] and len([c for c in read if c.endswith("_fraction")]) == 37


@pytest.mark.parametrize("value", ["many", 1.5, -0.1, np.nan])
def test_kaggle_cells_that_are_no_shares(value):
    table = kaggle().astype({"Class7.2": object})
    table.loc[1, "Class7.2"] = value
    with pytest.raises(InputError, match="in column 'Class7.2', row 1: a share from 0 to 1"): read_catalog(table)


@pytest.mark.parametrize("value,said", [(0.4, "fractions where counts are expected"), ("yes", "holds str, not counts"),
                                        (True, "holds bool, not counts"), (-1, "negative votes"), (2.5, "not whole numbers")])
def test_i33_i41_what_is_no_count(value, said):
    fraction = {c: 0.4 for c in DR5.columns} if value == 0.4 else {DR5.columns[3]: value}
    assert said in errors(catalog(**fraction), "dr5").replace("object", "str")


def test_a_whole_campaign_without_votes():
    "Galaxies seen in another campaign have none: no error. No galaxy with any: an error"
    schema = get_schema("dr5+dr8")
    table = pd.DataFrame({"id_str": list("ab"), **{c: [3, 3] if "-dr5" in c else [0, 0] for c in schema.columns}})
    assert check_catalog(table, schema).ok
    assert "no galaxy has any vote" in errors(table.assign(**{c: 0 for c in schema.columns}), schema)
    assert "34 of the 68 vote columns" in errors(table.drop(columns=get_schema("dr8").columns), schema)


def test_arrow_tables_keep_ids(tmp_path):
    import pyarrow as pa
    table = pa.table({"dr7objid": pa.array([int(A), None], pa.int64()), "image": [b"x", b"y"], "ra": [1.0, 2.0]})
    read = read_table(table)
    assert read["dr7objid"].tolist() == [A, ""] and list(read) == ["dr7objid", "ra"]


@pytest.mark.parametrize("rows,line", [("J1,1,2\nJ2-00", 3), ("J1,1,2\nJ2,3\nJ3,4,5\n", 3), ('"J\n1",1,2\n\nJ2,1', 5)])
@pytest.mark.parametrize("name", ["cut.csv", "cut.csv.gz"])
def test_rows_with_too_few_cells(tmp_path, rows, line, name):
    path = tmp_path / name
    path.write_bytes((gzip.compress if name.endswith("gz") else bytes)(f"id_str,ra,dec\n{rows}".encode()))
    with pytest.raises(InputError, match=f"{name}: the row that ends in line {line} has . of 3 cells"): read_table(path)


def test_blank_cells_and_lines_are_no_short_rows(tmp_path):
    rows = '"J\n1",1,\r\n\r\n   \r\nJ2,,\r\nJ3,1,2\r\n\r\n'
    assert read_table(write(tmp_path / "whole.csv", f"id_str,ra,dec\r\n{rows}"))["dec"].isna().tolist() == [True, True, False]
    assert read_table(write(tmp_path / "ids.csv", "ra,id_str\n1,\n2,b\n"))["id_str"].tolist() == ["", "b"]


def test_names_too_long_for_a_file(tmp_path):
    "No such file: the picture is missing, the table is read"
    (tmp_path / "b.jpg").touch()
    table = pd.DataFrame({"id_str": ["a" * 300, "b"]})
    assert read_catalog(table, root=tmp_path)["file_loc"].tolist() == ["a" * 300 + ".jpg", "b.jpg"]
    read = read_catalog(table.assign(file_loc=["a" * 300 + ".jpg", "b.jpg"]), root=tmp_path)
    assert read["file_loc"].tolist() == ["a" * 300 + ".jpg", "b.jpg"]


def test_files_whose_names_are_not_utf8(tmp_path):
    (tmp_path / "b.jpg").touch()
    try: open(os.fsencode(tmp_path) + b"/gal\xe9.jpg", "w").close()
    except OSError: pytest.skip("this disk takes no such names")
    with pytest.warns(UserWarning, match=r"1 picture .* left out.*'gal\\udce9.jpg'"): read = read_folder(tmp_path)
    assert read["id_str"].tolist() == ["b"]


def test_picture_columns_are_told(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    one = pa.array([b"x"])
    table = pa.table({"id_str": ["a"], "image": pa.StructArray.from_arrays([one, pa.array(["x.jpg"])], ["bytes", "path"]),
                      "raw": one, "feat": pa.array([[1.0]]), "other": pa.StructArray.from_arrays([one], ["spectrum"])})
    pq.write_table(table, tmp_path / "pictures.parquet")
    for source in (table, tmp_path / "pictures.parquet"):
        read = read_catalog(source)
        assert list(read) == ["id_str"] and read.attrs["pictures"] == ["image", "raw"]
        unused = [finding for finding in check_catalog(read).findings if "not used" in finding.what]
        assert set(unused[0].examples) == {"raw", "feat", "other"}
    assert read_catalog(catalog()).attrs["pictures"] == []


@pytest.mark.parametrize("kind", ["binary", "large_binary", "binary_view"])
def test_bytes_of_every_kind_are_pictures(tmp_path, kind):
    import pyarrow as pa
    import pyarrow.parquet as pq
    table = pa.table({"id_str": ["a"], "image": pa.array([b"x"], getattr(pa, kind)())})
    pq.write_table(table, tmp_path / "pictures.parquet")
    for source in (table, tmp_path / "pictures.parquet"):
        read = read_catalog(source)
        assert list(read) == ["id_str"] and read.attrs["pictures"] == ["image"]
