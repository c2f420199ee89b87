"""What each furniture model may be in a scene, and which split a chair model belongs to.

A key is library/id: bs0 and bsby are Blend Swap (CC0, CC BY), kl Kator Legaz, rl Reallusion, sc Scopia.
Chosen by hand by looking at all 820 models. A chair is a free-standing seat for one with a backrest.
Every chair-like thing without a label is in AMBIGUOUS and in no scene, so that no detection of one
can be called wrong.
"""

# ruff: noqa: SIM905 -- a literal list would be a quote and a comma longer for each of 270 keys

# sc/ext_chair, a daybed, was an armchair of version 1 of the data; new renders leave it out.
_DINING = """
    bs0/oakChair bs0/plasticChair bs0/sillaBlanca bs0/chair bs0/antiqueChair bs0/chairWithCushion bs0/chair2
    bs0/osakaChair bs0/thonet bsby/cafe_set_mota_chair bsby/cafe_set_tonon_chair bsby/chairWithCushion
    bsby/ella_chair_f bsby/foldingChair bsby/plaidChair bsby/kitchenChair bsby/chair3 bsby/chair4 kl/cafe-chair
    kl/dining-chair sc/chair3 sc/chair4 sc/chair sc/tubular_chair sc/plastic_chair sc/white_kitchen_chair
    bs0/armchair sc/silla_teca sc/modern_armchair
""".split()

_ARM = """
    bs0/armchair2 bs0/modernArmchair bs0/winchesterArmchair bs0/designChair bsby/leaf_chair bsby/armchair1
    bsby/fotel bsby/armChair2 kl/mid-century-chair kl/chair-ottoman sc/armchair3 sc/armchair sc/armchair1
    sc/armchair2 sc/rattanArmchair
""".split()

_OFFICE = """
    kl/office-chair sc/office_chair sc/kids_desk_chair bsby/classSeat
""".split()

_BAR = """
    bs0/silla2 bs0/stool kl/bar-stool sc/bar_chair sc/kitchen_stool
""".split()

_OTHER = """
    bs0/deckChair bsby/childChair sc/baby_high_chair sc/children_chair
""".split()

CHAIRS = {"dining": _DINING, "arm": _ARM, "office": _OFFICE, "bar": _BAR, "other": _OTHER}

# Held-out models, chosen so that each type of chair is in each split.
VAL_CHAIRS = """
    bs0/chairWithCushion bsby/chair4 sc/plastic_chair bsby/foldingChair bs0/modernArmchair sc/armchair2
    sc/kids_desk_chair kl/bar-stool bsby/fotel
""".split()

# calibrate and test share these nine, in different scenes.
TEST_CHAIRS = """
    bs0/thonet sc/chair bsby/plaidChair kl/cafe-chair bsby/leaf_chair sc/armchair bs0/armchair2 kl/office-chair
    sc/bar_chair
""".split()

AMBIGUOUS = """
    bs0/foldingChair bs0/stool2 bsby/green_stool bs0/relaxChair bsby/chair_deck bsby/poolLounge sc/beach_chair
    bsby/wheelchair sc/puff sc/ryokanChair sc/hammock sc/ext_chair
""".split()

SOFAS = """
    bs0/couch bs0/sofa2 bs0/winchesterSofa bs0/couch2 bs0/L_shaped_sofa bs0/sofa bsby/sofa2 bsby/sofa3
    bsby/couch3 bsby/cornerSofa kl/futon-couch kl/mid-century-bench-sofa kl/mid-century-sofa sc/clear_sofa
    sc/simple_sofa sc/beige_sofa_2seats sc/beige_sofa sc/burlap_sofa sc/leather_sofa sc/sofa_white_beige
    sc/rattanSofa sc/convertible-sofa-BZ-closed
""".split()

TABLES = """
    bs0/oakTable bs0/tableWithTablecloth bs0/table bsby/table kl/folding-table kl/glass-dining-table
    sc/black_table sc/table3 sc/table4 sc/white_kitchen_table sc/wooden_office_teak_table
    sc/wooden_office_pear_table_rect sc/metal_glass_table sc/wooden_table_office sc/round-table
    sc/table-with-leaning-feet sc/table-on-trestles
""".split()

SMALL_TABLES = """
    bsby/cafe_set_mota_table bsby/cafe_set_tonon_table kl/cafe-table sc/table3
""".split()

BAR_TABLES = """
    sc/bar_table bsby/kitchenIsland bs0/islandExtension
""".split()

DESKS = """
    bs0/desk bs0/lbDesk bs0/technicalTable1 bsby/biurko3 bsby/simpleDesk bsby/officeTable kl/custom-desk
    sc/kids_desk_table sc/kids_wooden_desk sc/glass_table_office sc/desk_table sc/wooden_office_alder_table
    sc/wooden_office_pear_table
""".split()

COFFEE_TABLES = """
    bsby/coffeeTable sc/saloon_table sc/ext_table sc/living_room_table sc/table_wood_and_iron sc/coffee-table2
    sc/rattanTable
""".split()

STORAGE = """
    bs0/bookcase bs0/shelves bs0/televisionCabinet bs0/cupboard bs0/verticalShelves bs0/wardrobeWithSlidingDoors
    bs0/lockedLocker bs0/highCabinet bs0/refrigerator bs0/largeFridge bsby/wardrobe bsby/chest bsby/bookcase
    bsby/dresserWithDrawers bsby/wardrobe2 kl/utility-shelving kl/filing-cabinet kl/full-bookcase kl/fridge
    sc/wardrobe1 sc/dining_room sc/office_box sc/office_furniture1 sc/contemp_living_room sc/kids_shelves
    sc/fireplace1 sc/fireplace2 bsby/piano sc/clothes_washing_machine bsby/washing_machine sc/water_cooler
    sc/chest-freezer bsby/largeStove bsby/tvStand sc/box_room
""".split()

LOW_CABINETS = """
    bs0/lowerCabinet bs0/drawersCabinet bs0/sinkCabinet bsby/kitchenDrawersCabinet bsby/kitchenLowerCabinet
    bsby/kitchenSink sc/dryer_machine
""".split()

FLOOR_LAMPS = """
    sc/living_lamp bs0/speaker3 bs0/speaker2
""".split()

PLANTS = """
    bs0/decorativePlant bs0/plant bs0/littlePlant bs0/cactus bsby/mediumIndoorPlant bsby/spatifilum
    bsby/yuccaPlant bsby/decorativePlant sc/maceta sc/ficus sc/vase5 bsby/luckyBamboo
""".split()

TABLETOP = """
    bs0/desklamp sc/little_lamp1 sc/little_lamp2 sc/little_lamp3 sc/table_lamp bsby/lamp bsby/laptop
    kl/apple-ibook-2001 sc/apple_pc sc/vase1 sc/vase2 sc/vase3 sc/jar sc/old_jar sc/apples sc/bowlWithFruits
    sc/bowlWithSalad sc/cup sc/teapot bsby/book sc/wine_bottle kl/red-wine-bottle-01 kl/coffee-mug
    bsby/coffee_cup sc/phone sc/penbox sc/frame1 bsby/tulip bsby/tulips bsby/white_lily bs0/orchids
    sc/desk_lamp2 kl/apple-imac-1998 bs0/teddyBear bsby/radio kl/plate-and-ustensils kl/newspaper
    sc/inkjet_and_scanner_printer bs0/tableFan sc/candle sc/birthday_cake bsby/gift sc/folded_clothes
""".split()

ON_FLOOR = """
    bs0/crate bs0/barrel bs0/ammoBox bs0/box sc/cardboard-box sc/open-cardboard-box sc/clothes-basket
    bsby/suitcase bsby/backpack bs0/briefcase kl/recycling-bin kl/bullet-trash-can bs0/dustbin sc/dog sc/cat
    bsby/bulldog sc/step-ladder-wood sc/step-ladder-metal sc/japanese_style_screen sc/clothes-horse
    sc/doll-house sc/tricycle bs0/basketball bsby/ballonFoot bsby/gift sc/stroller bs0/electricGuitar
    kl/trunk-large sc/wood_logs bs0/whiteBoard sc/shopping-basket bs0/teddyBear sc/clothes-rack bs0/caballito
    sc/punching-ball bs0/pianoBench kl/bench kl/painted-bench sc/wood_bank bs0/bench
""".split()

BEDS = """
    bs0/bed1 bs0/bed2 bs0/bedWithTexture bs0/bed3 bsby/juniorBed bsby/bunkBed bsby/lettoCloud sc/bed1
    sc/iron_bed sc/children_bed sc/crib sc/captains-bed bs0/bedsideTable2 bsby/bedsideTable
""".split()

PEOPLE = """
    rl/female01 rl/female02 rl/female03 rl/male01 rl/male02 rl/male03 rl/holdingMale01 rl/holdingFemale01
    rl/holdingFemale02 rl/holdingFemale03 rl/boyStanding rl/girlStanding kl/male-01-suit
    kl/female-01-casual-clothing sc/mannequinMale
""".split()

SEATED_PEOPLE = """
    rl/sitFemale03 rl/sitMale01 rl/sitMale02 rl/boySitting rl/girlSittingTable
""".split()

DOORS = """
    sc/door sc/puerta kl/exterior-door-02 sc/glass_door kl/exterior-door-01
""".split()

HANGING = """
    sc/ceiling-lamp sc/chandelier-lamp bs0/lamp2 kl/hanging-restaurant-light bsby/hangingLight sc/saloon_lamp
""".split()

CURTAINS = """
    sc/curtain
""".split()

ON_WALL = """
    sc/wall-flat-tv bs0/radiator bs0/radiator1 bsby/modernRadiator bs0/cuckooClock sc/dart_game
    sc/internal-unity-air-conditioning
""".split()

DISTRACTORS = [
    *SOFAS, *TABLES, *SMALL_TABLES, *BAR_TABLES, *DESKS, *COFFEE_TABLES, *STORAGE, *LOW_CABINETS, *FLOOR_LAMPS,
    *PLANTS, *TABLETOP, *ON_FLOOR, *BEDS, *PEOPLE, *SEATED_PEOPLE, *DOORS, *HANGING, *CURTAINS, *ON_WALL,
]  # fmt: skip
# The number is a part of every scene's seed: changing it changes the data.
SPLITS = {"train": 0, "val": 1, "calibrate": 2, "test": 3}


def chairs_of(split: str) -> dict[str, list[str]]:
    """The chair models of a split by type; a type that the split lacks draws from all of its models.

    Raises:
        ValueError: the split is unknown.
    """
    if split not in SPLITS:
        raise ValueError(f"split: {split!r} is unknown; expected one of {', '.join(SPLITS)}")
    if split == "train":
        allowed = {key for keys in CHAIRS.values() for key in keys} - {*VAL_CHAIRS, *TEST_CHAIRS}
    else:
        allowed = set(VAL_CHAIRS if split == "val" else TEST_CHAIRS)
    chairs = {kind: [key for key in keys if key in allowed] for kind, keys in CHAIRS.items()}
    everything = [key for keys in chairs.values() for key in keys]
    return {kind: keys or everything for kind, keys in chairs.items()}


def all_models() -> list[str]:
    """Every model that a scene can show, sorted: what ATTRIBUTION.csv must list."""
    return sorted({key for keys in CHAIRS.values() for key in keys} | set(DISTRACTORS))
