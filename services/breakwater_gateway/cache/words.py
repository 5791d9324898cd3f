"""English words whose difference changes what is asked: the tables behind `slots.py`.

Closed classes are sets of which a question means one member; opposites are pairs of sides; negations turn
a question round. The lists are general English and far from complete; a word that is not here is
caught by the substitution rule of `slots.py` when it is all that differs.
"""

from typing import Final


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _table(text: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(line.split()) for line in text.strip().splitlines())


STOPWORDS: Final = _words(
    """
    a an the this that these those there here it its i me my mine you your yours he him his she her hers we us
    our ours they them their theirs be am is are was were been being do does did done doing have has had
    having can could will would shall should may might must of to in at on for with by from as into onto
    about and or but if so than then what which who whom whose when where why how whats hows wheres whos
    whens please thanks thank hi hello hey morning afternoon evening cheers ok okay um uh er like just really
    actually also too very much many any some get got gets getting need needs want wants wanted like likes
    know tell say go going make possible way ways out up let lets us am im id ive ill youre s t d m re ve ll
    exactly usually currently good best
    """
)
"""Words that carry no content of a question; not all of them are outside every class below."""

NEGATIONS: Final = _words(
    """
    not no never without none neither nor cannot nothing nobody nowhere hardly barely non except excluding
    excluded exclude excludes avoid avoids avoiding avoided ban bans banned forbid forbids forbidden
    prohibit prohibits prohibited refuse refuses refused lack lacks lacking minus zero stop prevent prevents
    """
)

OPPOSITES: Final = tuple(
    (frozenset(left.split()), frozenset(right.split()))
    for left, right in (
        line.split("|")
        for line in """
        on | off
        increase increases increasing raise raises raising grow higher up | decrease decreases reduce reduces reducing lower lowers lowering shrink down
        enable enables enabled activate activated | disable disables disabled deactivate deactivated
        allow allows allowed permit permitted permits legal | ban bans banned forbid forbidden prohibited illegal deny
        include includes included including cover covers covered | exclude excludes excluded excluding
        accept accepts accepted approve approved agree | reject rejects rejected decline declined declines refuse refused deny denied disagree
        join joins joined enter enroll enrol subscribe | leave leaves left exit quit unsubscribe withdraw cancel
        add adds added adding attach insert | remove removes removed removing delete deleted subtract detach take
        open opens opening opened | close closes closing closed shut
        start starts starting begin begins beginning commence | end ends ending stop stops finish finishes
        lock locked freeze block blocked | unlock unlocked unfreeze unblock unblocked
        buy buys buying purchase bought | sell sells selling sold
        lend lends lending | borrow borrows borrowing
        push pushing | pull pulling
        import imports importing upload uploads uploading | export exports exporting download downloads downloading
        deposit deposits depositing | withdraw withdraws withdrawing withdrawal withdrawals
        send sends sending sent transfer | receive receives receiving received
        incoming inbound inward | outgoing outbound outward
        arrive arrives arrival arrivals arriving | depart departs departure departures departing
        before prior earlier | after following later during within since
        within during inside | after outside beyond
        above over more exceeds | below under less fewer
        max maximum most highest largest biggest longest latest tallest fastest | min minimum least lowest smallest shortest earliest slowest
        best good advantages advantage benefit benefits pros strengths | worst bad disadvantages disadvantage drawback drawbacks cons weaknesses risks
        cheap cheapest cheaper inexpensive | expensive costly priciest dearest
        hot warm heat heating | cold cool cooling
        big large | small little tiny
        fast quick quickly | slow slowly
        new newest | old oldest used
        early | late
        first | last
        free | paid
        full | part partial empty half
        high | low
        long | short
        left | right
        front | back rear
        inside indoor indoors internal | outside outdoor outdoors external
        public | private
        online digital electronic remote | offline paper person
        compulsory mandatory required obligatory | optional voluntary elective
        single one | double both return
        domestic national local | international foreign abroad overseas
        win wins winning won | lose loses losing lost
        rise rises rising | fall falls falling
        show shows visible unhide | hide hides hidden
        connect connects connected | disconnect disconnects disconnected
        install installs installing | uninstall uninstalls uninstalling
        mute muted | unmute unmuted
        encrypt encryption encode | decrypt decryption decode
        safe safely | unsafe dangerous harmful
        true correct right | false incorrect wrong
        success succeed pass passes passed working works | failure fail fails failed fault faulty broken
        employer employers | employee employees staff worker workers
        landlord landlords | tenant tenants renter renters
        buyer buyers customer | seller sellers vendor
        teacher teachers | student students pupil pupils
        doctor doctors | patient patients
        sender | recipient receiver
        parent parents | child children kid kids
        adult adults | child children kid kids baby babies
        male men man boy boys | female women woman girl girls
        husband | wife
        male | female
        alive life | dead death
        input inputs | output outputs
        read reading | write writing
        ask question | answer
        gain gains profit profits | loss losses
        credit | debit
        asset assets | liability liabilities
        gross | net
        fixed | variable
        permanent | temporary
        monthly | yearly annual annually
        weekday weekdays | weekend weekends
        day daytime | night nighttime
        am | pm
        north northern | south southern
        east eastern | west western
        internal | external
        major | minor
        strong | weak
        hard difficult | easy soft
        wet | dry
        full-time | part-time
        create creates creating make | delete destroy
        hire hires hiring | fire fires firing
        accept | except
        lend | borrow
        asc ascending | desc descending
        encode | decode
        compress zip | decompress unzip extract
        """.strip().splitlines()
    )
)

CLASSES: Final = _table(
    """
    monday tuesday wednesday thursday friday saturday sunday weekday weekend
    today tomorrow yesterday tonight
    morning noon afternoon evening night midnight breakfast lunch dinner brunch supper
    january february march april may june july august september october november december
    spring summer autumn winter
    red green blue yellow black white orange purple pink brown grey silver gold
    gbp usd eur jpy inr chf aud cad cny krw rub sek nok dkk pln bitcoin ethereum
    minute hour day week month year decade century quarter
    daily weekly monthly quarterly yearly hourly
    mm cm metre km inch foot yard mile
    gram kg ounce pound tonne stone
    litre ml gallon pint
    celsius fahrenheit kelvin
    kb mb gb tb
    north south east west
    chicken beef pork lamb fish vegetarian vegan duck turkey salmon tuna prawn tofu
    italian thai indian chinese japanese french mexican greek turkish spanish korean vietnamese
    english german portuguese russian arabic dutch polish swedish hindi mandarin
    breakfast lunch dinner
    tea coffee water juice milk beer wine
    dog cat rabbit horse bird hamster
    train bus plane flight tram ferry taxi car bike bicycle motorbike van lorry
    home car travel pet life health
    visa mastercard amex paypal klarna
    england wales scotland ireland
    uk us eu france germany spain italy china japan india canada australia brazil mexico russia poland
    bronze silver gold platinum diamond
    free basic starter standard plus pro premium business enterprise
    small medium large
    child adult senior student
    first second third fourth fifth
    undergraduate postgraduate masters phd
    username password email phone address name
    iphone ipad android windows mac linux pixel kindle
    chrome firefox safari edge
    java python javascript typescript rust go ruby php kotlin swift
    mysql postgres sqlite mongodb redis
    message account profile photo video file folder comment post
    employee freelancer contractor
    mercury venus earth mars jupiter saturn uranus neptune
    solid liquid gas
    """
)
"""Sets of which a question means one: another member makes another question."""

SCOPES: Final = _table(
    """
    child baby
    colleague manager
    friend neighbour
    wife husband partner spouse
    mother father parent
    brother sister
    guest visitor
    member
    tenant landlord homeowner
    resident
    student pupil
    pensioner
    employee employer freelancer contractor
    extended
    enterprise
    business corporate
    extra additional another
    international overseas abroad
    pregnant breastfeeding
    online
    joint
    self self-employed
    emergency
    replacement
    refurbished
    """
)
"""Words that narrow a question: one of them on one side alone makes another question."""

SAME: Final = {
    member: line.split()[0]
    for line in """
    child children kid kids childs
    baby babies infant infants
    employee employees staff worker workers
    tenant tenants renter renters
    landlord landlords
    homeowner homeowners
    freelancer freelancers self-employed
    wife wifes
    phone mobile cellphone smartphone telephone
    tv television
    gbp £ pound pounds sterling quid
    usd $ dollar dollars
    eur € euro euros
    jpy ¥ yen
    inr rupee rupees ₹
    percent % percentage pct
    us usa america american
    uk britain british
    minute minutes min mins
    hour hours hr hrs
    day days
    week weeks
    month months
    year years yr yrs
    daily everyday
    yearly annual annually
    monday mon mondays
    tuesday tue tues tuesdays
    wednesday wed wednesdays
    thursday thu thur thurs thursdays
    friday fri fridays
    saturday sat saturdays
    sunday sun sundays
    weekend weekends
    weekday weekdays
    january jan
    february feb
    march mar
    april apr
    august aug
    september sep sept
    october oct
    november nov
    december dec
    autumn fall
    kg kilo kilos kilogram kilograms
    gram grams g
    km kilometre kilometres kilometer kilometers
    metre metres meter meters
    inch inches
    foot feet ft
    mile miles
    ounce ounces oz
    tonne tonnes ton tons
    litre litres liter liters
    gb gigabyte gigabytes
    mb megabyte megabytes
    tb terabyte terabytes
    celsius centigrade
    dog dogs puppy
    cat cats kitten
    breakfast breakfasts
    flight flights
    bike bikes bicycle bicycles
    grey gray
    postgres postgresql
    member members
    guest guests
    visitor visitors
    resident residents
    student students pupil pupils
    parent parents
    mother mum mom
    father dad
    cost costs price prices priced charge charges fee fees expense
    buy purchase buys purchasing
    cancel cancelling canceling cancelled canceled cancellation end terminate terminating
    begin begins start starts commence
    change switch changing switching swap modify update updating
    fix repair mend fixing
    delivery shipping deliver delivered deliveries delivers ship
    order parcel package orders
    trip journey
    luggage baggage bags bag suitcase
    holiday vacation leave
    film movie
    quick fast quickly fastest quickest
    create set setup make open
    receive obtain have
    submit file filing submitting send
    offer provide provides offers
    allow permit permitted allowed
    doc docs document documents paperwork
    refund refunds refunded reimbursement
    booking reservation reserve book
    answer reply respond
    movies films
    """.strip().splitlines()
    for member in line.split()
}
"""Spellings and near synonyms that ask the same: word -> the one that stands for all."""

UNITS: Final = _words(
    """
    am pm gbp usd eur jpy inr percent minute hour day week month year mm cm metre km inch foot mile gram kg ounce
    tonne litre ml kb mb gb tb mhz ghz k m bn st nd rd th x c f kw kwh w v mph kmh
    """
)
"""What may be written right behind a number."""

PREFIXES: Final = (
    *("un", "in", "im", "ir", "il", "dis", "non", "de", "mis", "re", "pre", "post", "anti", "over"),
    *(
        "under",
        "sub",
        "super",
        "semi",
        "bi",
        "multi",
        "inter",
        "intra",
        "hyper",
        "hypo",
        "ex",
        "up",
    ),
)
"""A word and the same with one of these in front are two things."""

NUMBERS: Final = {
    word: float(value)
    for value, line in enumerate(
        _table(
            """
            zero
            one once single
            two twice double
            three triple
            four
            five
            six
            seven
            eight
            nine
            ten
            eleven
            twelve dozen
            thirteen
            fourteen
            fifteen
            sixteen
            seventeen
            eighteen
            nineteen
            twenty
            """
        )
    )
    for word in line
} | {
    "half": 0.5,
    "thirty": 30.0,
    "forty": 40.0,
    "fifty": 50.0,
    "sixty": 60.0,
    "seventy": 70.0,
    "eighty": 80.0,
    "ninety": 90.0,
    "hundred": 100.0,
    "thousand": 1e3,
    "million": 1e6,
    "billion": 1e9,
}

FROM: Final = frozenset({"from", "leaving", "departing"})
TO: Final = frozenset({"to", "into", "towards", "arriving"})
