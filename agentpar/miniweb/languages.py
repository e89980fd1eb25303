"""English names of languages by ISO 639 code. A table, and nothing else."""

from __future__ import annotations

_TABLE = """
aa Afar|ab Abkhazian|af Afrikaans|ak Akan|am Amharic|an Aragonese|ar Arabic|as Assamese
av Avaric|ay Aymara|az Azerbaijani|ba Bashkir|be Belarusian|ber Berber|bg Bulgarian
bh Bihari|bho Bhojpuri|bi Bislama|bm Bambara|bn Bengali|bo Tibetan|br Breton|bs Bosnian
ca Catalan|cau Caucasian languages|cbk Chavacano|ce Chechen|ceb Cebuano|ch Chamorro
cmn Mandarin Chinese|co Corsican|cs Czech|cu Church Slavonic|cv Chuvash|cy Welsh|da Danish
de German|dta Daur|dv Dhivehi|dz Dzongkha|ee Ewe|el Greek|en English|es Spanish|et Estonian
eu Basque|fa Persian|ff Fula|fi Finnish|fil Filipino|fj Fijian|fo Faroese|fr French
frp Franco-Provençal|fy West Frisian|ga Irish|gag Gagauz|gd Scottish Gaelic|gl Galician
gn Guarani|gsw Swiss German|gu Gujarati|gv Manx|ha Hausa|haw Hawaiian|he Hebrew|hi Hindi
hr Croatian|ht Haitian Creole|hu Hungarian|hy Armenian|id Indonesian|ig Igbo|ilo Ilocano
inh Ingush|is Icelandic|it Italian|iu Inuktitut|ja Japanese|jv Javanese|ka Georgian
kg Kongo|ki Kikuyu|kk Kazakh|kl Greenlandic|km Khmer|kn Kannada|ko Korean|kr Kanuri
ks Kashmiri|ku Kurdish|kv Komi|ky Kyrgyz|la Latin|lb Luxembourgish|lg Luganda|ln Lingala
lo Lao|lt Lithuanian|lu Luba-Katanga|lv Latvian|mg Malagasy|mh Marshallese|mi Maori
mk Macedonian|ml Malayalam|mn Mongolian|mos Mossi|mr Marathi|ms Malay|mt Maltese|my Burmese
na Nauruan|nan Min Nan Chinese|nb Norwegian Bokmål|nd Northern Ndebele|ne Nepali|nl Dutch
nn Norwegian Nynorsk|no Norwegian|nr Southern Ndebele|nso Northern Sotho|ny Chichewa
oc Occitan|om Oromo|or Odia|os Ossetian|pa Punjabi|pap Papiamento|pl Polish|ps Pashto
pt Portuguese|qu Quechua|rm Romansh|rn Kirundi|ro Romanian|rom Romani|ru Russian
rw Kinyarwanda|sa Sanskrit|sc Sardinian|sd Sindhi|se Northern Sami|sg Sango|si Sinhala
sk Slovak|sl Slovene|sm Samoan|sn Shona|so Somali|sq Albanian|sr Serbian|ss Swati
st Southern Sotho|su Sundanese|sv Swedish|sw Swahili|ta Tamil|te Telugu|tet Tetum|tg Tajik
th Thai|ti Tigrinya|tk Turkmen|tl Tagalog|tn Tswana|to Tongan|tpi Tok Pisin|tr Turkish
ts Tsonga|tt Tatar|ug Uyghur|uk Ukrainian|ur Urdu|uz Uzbek|ve Venda|vi Vietnamese
wo Wolof|xh Xhosa|yi Yiddish|yo Yoruba|yue Cantonese|za Zhuang|zh Chinese|zu Zulu
"""

NAMES: dict[str, str] = {
    code: name
    for code, _, name in (
        entry.partition(" ") for entry in _TABLE.strip().replace("\n", "|").split("|")
    )
}


def language_name(code: str) -> str:
    """The name of ``code`` (``es-CL`` is Spanish), or the code itself where it is not known."""
    return NAMES.get(code.split("-")[0], code)
