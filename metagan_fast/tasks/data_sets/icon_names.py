"""Concepts of icon names: the same thing drawn by many sets, however each calls it."""

from __future__ import annotations

import functools
from collections.abc import Iterable


def _words(text: str) -> list[str]:
    return text.split()


_STYLES = frozenset(
    _words("""
    outline outlined outlin fill filled line lined linear bold bolder light lighter thin regular medium duotone twotone
    two tone sharp round rounded solid stroke stroked bulk baseline alt alternate icon icons broken sketch flat mini
    micro remix v1 v2 rtl ltr small large big ios md sm lg xs xl s l m o f r t
    0 1 2 3 4 5 6 7 8 9 10 12 16 20 24 28 32 36 40 48 64 72 96 12px 16px 20px 24px 28px 32px 36px 48px
""")
)
"""Words at a name's ends that say how something is drawn, or number further drawings of it."""

_SYNONYMS = """
    activity heartbeat pulse vital-signs
    arrow-down down
    arrow-left back arrow-back left
    arrow-right arrow-forward right
    arrow-up up
    at at-sign mention
    axe hatchet
    baby child infant
    bandage adhesive-bandage band-aid bandaid
    ban block blocked circle-slash forbid forbidden no-entry not-allowed prohibit prohibited
    barbell dumbbell fitness gym
    basketball basketball-ball ball-basketball
    bath bathtub
    beer beer-mug beer-mug-empty beer-stein
    bird dove
    book-mark bookmark-book
    bookmark bookmark-simple
    branch git-branch
    broadcast antenna
    broom sweep
    burger-food fast-food
    certificate diploma
    chair armchair seat
    cherry cherries
    cloud-rain cloud-showers rain rainy
    cloud-snow snowy snowing
    cloud-sun partly-cloudy partly-cloudy-day sun-cloud
    cocktail martini martini-glass
    coins coin
    commit git-commit
    compare git-compare
    contract collapse compress minimize shrink exit-full-screen
    disc album cd compact-disc record vinyl
    ear hearing
    expand enlarge maximize
    factory industry
    female woman
    film-strip filmstrip
    fingerprint finger-print touch-id
    flask beaker erlenmeyer
    flower tulip
    fog haze mist foggy
    fork git-fork
    fridge refrigerator
    fuel gas-pump gas-station petrol
    gavel auction law legal
    git-merge merge
    hand palm raised-hand
    hard-drive drive harddisk hdd hard-disk drive-harddisk
    heading header
    id-card id identification id-badge
    keyboard keypad
    lamp desk-lamp table-lamp lamp-desk
    loader loading spinner
    luggage baggage suitcase-rolling
    male man
    moped scooter
    motorcycle motorbike
    off crossed disabled slash
    paint-bucket bucket-paint fill-color format-color-fill
    paint-roller roller
    paragraph pilcrow
    pedestrian walk walking
    plant potted-plant seedling sprout
    playlist queue-music
    pool swim swimming
    pull-request git-pull-request
    quote quotes quote-left quotation double-quotes
    receipt invoice
    recycle recycling
    road highway
    robot bot smart-toy
    rotate-left rotate-ccw rotate-counterclockwise counter-clockwise
    rotate-right clockwise rotate-clockwise rotate-cw
    run runner running
    safe vault
    sailboat ferry
    scale balance balance-scale scales scale-balance
    select-all selection
    sim-card sim
    soccer ball-football football soccer-ball sports-soccer
    sofa couch
    star-half half-star
    sync arrows-rotate
    syringe injection needle vaccine vaccination vaccines
    taxi cab local-taxi
    tennis ball-tennis tennis-ball sports-tennis
    tent camp camping campground
    test-tube tube vial
    torch flashlight
    traffic-cone cone
    traffic-light stoplight traffic-lights traffic-signal
    washing-machine laundry washer local-laundry
    waves water wave
    wind windy air
    wine wine-bar wine-glass glass-wine
    airplane aeroplane aircraft plane
    alarm alarm-clock clock-alarm
    award medal ribbon-badge
    bank institution university
    barcode bar-code
    basket shopping-basket shop-basket
    battery-full full-battery
    bell alarm-bell notification notifications
    bicycle bike cycle
    bluetooth blue-tooth
    book-open open-book
    bolt flash lightning lightning-bolt thunder thunderbolt zap
    briefcase suitcase
    bucket pail
    building office office-building apartment
    bullseye dart target
    cake birthday-cake
    camera-off camera-slash
    car automobile
    card bank-card credit-card creditcard payment-card
    cart shop-cart shopping-cart
    chart-bar bar-chart bars-chart chart-bars
    chart-line line-chart
    chart-pie pie-chart
    check check-mark checkmark done tick tick-mark
    check-circle checkmark-circle circle-check tick-circle
    chevron angle
    chevron-down angle-down
    chevron-left angle-left
    chevron-right angle-right
    chevron-up angle-up
    circle-info info-circle information-circle
    circle-question help-circle question-circle question-mark-circle
    clock time
    cloud cloudy
    coffee coffee-cup cup mug
    comment bubble chat chat-bubble comments message message-bubble speech-bubble
    copy duplicate
    cpu chip microchip processor
    crosshair crosshairs
    database db
    desktop computer display monitor screen
    diamond gem
    document-text doc-text file-text
    dollar usd dollar-sign
    double-check check-double check-all checks
    droplet drop water-drop
    euro eur
    external-link link-external open-in-new link-out
    eye preview preview-open view visibility watch-eye
    eye-off eye-close eye-closed eye-crossed eye-slash hidden hide preview-close view-off visibility-off
    eyedropper eye-dropper color-picker colorize
    fast-forward forward-fast
    file doc document page
    film movie
    filter funnel
    fire flame
    folder directory
    fork-knife cutlery fork-spoon knife-fork restaurant spoon-knife utensils
    full-screen fullscreen
    gamepad game-controller controller
    gear cog cogwheel config configuration preferences setting settings
    gift present
    glasses eyeglasses spectacles
    globe earth world
    graduation-cap cap-graduation hat-graduation mortarboard
    grid apps
    hashtag hash
    headphones earphone headphone headset
    heart love
    home house
    hourglass sandglass sand-timer
    image img photo photograph picture
    info information
    key password-key
    laptop computer-laptop
    layers layer stack
    lifebuoy life-ring lifering life-buoy
    lightbulb bulb idea light-bulb
    link chain hyperlink
    location-arrow navigation
    lock locked padlock
    log-in enter login sign-in signin
    log-out exit logout sign-out signout
    magic-wand magic wand wand-magic
    mail email envelope letter
    mail-open envelope-open
    map-pin geo-alt location location-dot location-marker location-pin map-marker marker pin-location place
    megaphone bullhorn speakerphone loudspeaker
    menu bars burger hamburger hamburger-menu
    microphone mic
    microphone-off mic-off microphone-mute microphone-slash mic-mute
    minus subtract
    mobile cell-phone cellphone device-mobile mobile-phone phone-portrait smartphone smart-phone
    money cash banknote banknotes bill
    moon night
    more dots dots-horizontal ellipsis ellipsis-h ellipsis-horizontal more-horizontal three-dots
    more-vertical dots-vertical ellipsis-v ellipsis-vertical kebab three-dots-vertical
    music music-note music-notes note-music
    newspaper news
    outdent decrease-indent indent-decrease format-indent-decrease
    indent increase-indent indent-increase format-indent-increase
    package parcel
    paint-brush brush paintbrush
    paper-plane airplane-paper plane-paper telegram-plane send
    paperclip attach attachment clip paper-clip
    pencil edit pen
    people group persons team users
    percent percentage
    phone call phone-call telephone
    piggy-bank bank-piggy
    pill capsule pills
    pin push-pin pushpin thumbtack
    plug power-plug
    plus add create
    power power-off
    printer print
    puzzle puzzle-piece jigsaw
    qr-code code-qr qrcode
    question help question-mark
    refresh reload
    rss feed
    save disk diskette floppy floppy-disk
    scissors cut scissor
    search find magnifier magnify magnifying-glass magnifyingglass
    shield-check check-shield
    shirt t-shirt tshirt
    shop store storefront
    shopping-bag bag-shopping handbag shop-bag
    skip-back backward-step previous skip-backward skip-previous
    skip-forward forward-step next skip-next
    sliders adjustments tune
    smile emoji emoticon-happy face-smile happy mood-happy mood-smile smile-beam smiley
    snowflake snow
    sparkles sparkle
    star favorite favourite
    stopwatch timer
    strikethrough text-strikethrough format-strikethrough strike-through
    bold text-bold format-bold
    italic text-italic format-italic
    underline text-underline format-underline
    align-center text-align-center format-align-center
    align-justify text-align-justify format-align-justify justify
    align-left text-align-left format-align-left
    align-right text-align-right format-align-right
    list-ordered list-numbers list-numbered ordered-list numbered-list list-ol
    list list-unordered unordered-list bullet-list list-bulleted list-ul list-bullet
    sun sunny brightness-high
    superscript text-superscript format-superscript
    subscript text-subscript format-subscript
    tag label price-tag
    terminal command-line console
    thermometer temperature
    thumbs-down dislike thumb-down
    thumbs-up like thumb-up
    toggle-off off-toggle
    toggle-on on-toggle
    tools tool
    train railway
    trash bin delete delete-bin dustbin garbage recycle-bin rubbish trash-bin trash-can trashcan waste-bin
    trending-up trend-up
    trending-down trend-down
    trophy cup-trophy
    truck delivery delivery-truck lorry
    tv television
    umbrella parasol
    undo arrow-undo
    redo arrow-redo
    unlock lock-open lock-unlocked open-lock padlock-open unlocked
    unlink link-off broken-link link-slash
    user account people-person person profile
    user-minus person-remove remove-user user-remove
    user-plus account-plus add-person add-user person-add user-add
    video camera-video video-camera videocam
    video-off camera-video-off video-slash videocam-off
    volume sound speaker speaker-wave volume-high volume-up
    volume-off mute sound-off speaker-off volume-mute volume-slash volume-x volume-xmark
    warning alert alert-triangle exclamation-triangle triangle-alert triangle-exclamation warning-triangle
    wheelchair accessible
    wrench spanner
    x cancel clear close cross dismiss multiply times xmark
    zoom-in magnify-plus search-plus plus-search search-zoom-in
    zoom-out magnify-minus minus-search search-minus search-zoom-out
"""
"""Concepts, each with its other names."""

_BRANDS = frozenset(
    _words("""
    500px adobe airbnb aliexpress alipay amazon amex android angellist angular app apple appstore atlassian aws azure
    baidu behance bing bitbucket blogger bootstrap brand chrome cisco codepen codesandbox css css3 deezer deviantart
    digg discord docker dribbble dropbox drupal ebay edge etsy evernote facebook fb figma firefox flickr flutter
    foursquare framer git gitea github gitlab gmail google hackernews houzz html html5 hulu ibm imdb instagram invision
    itunes java javascript joomla jquery js jsfiddle kickstarter kotlin kubernetes laravel lastfm line-app linkedin
    linux logo logos magento mailchimp mastercard mastodon mdx medium messenger meta microsoft mongodb mysql netflix
    next nodejs npm okta onedrive openai opera paypal patreon php pinterest playstation python quora react reddit
    redhat redux sass safari shopify sketch skype slack snapchat soundcloud spotify square-x stackoverflow steam stripe
    svelte swift telegram threads tiktok trello tumblr twitch twitter typescript ubuntu uber unsplash vercel viber
    vimeo visa vk vue wechat weibo whatsapp wikipedia windows wordpress xbox xing yahoo yarn yelp youtube zoom-app
    slackware stackexchange markdown
""")
)
"""Words of trademarks, whose drawings are left out whatever licence they come under."""

_RESERVED = frozenset(
    _words(
        """
        alphabet character characters chinese cjk han hanzi hiragana ideogram ideograph ideographic japan japanese kana
        kanji katakana language languages letters locale pinyin syllabary translate translation translator zhuyin
        """
    )
)
"""Words of icons that show Han or Kana characters, which no set may hold."""

_MODIFIERS = frozenset(
    _words("""
    add all back backward badge bottom center check circle cross dashed diagonal disabled dots double down edit empty
    end exclamation first forward full half heart high horizontal in inner left low minus more off on open out outer
    pencil play plus question rectangle remove right search settings slash square star start top triangle up user
    vertical warning x
""")
)
"""Words that only change a thing; the group of a class is what they change."""

Key = tuple[str, ...]


def _key(words: Iterable[str]) -> Key:
    return tuple(sorted(words))


@functools.cache
def _synonyms() -> dict[Key, str]:
    table: dict[Key, str] = {}
    for line in _SYNONYMS.split("\n"):
        for name in line.split():
            table.setdefault(_key(name.split("-")), line.split()[0])
    return table


def concept(name: str, suffixes: Iterable[str] = (), prefixes: Iterable[str] = ()) -> str | None:
    """Return the concept that an icon's name means, in words joined by "-".

    None for trademarks, for what shows characters of reserved scripts, and where no word is left.

    The order of words does not matter: the concept's are those of the first synonym, or in alphabetical order.

    Args:
        name: such as "ellipsis-horizontal-16-solid".
        suffixes, prefixes: the set's own names of its styles.
    """
    for ending in sorted(filter(None, suffixes), key=len, reverse=True):
        if name.endswith(f"-{ending}"):
            name = name.removesuffix(f"-{ending}")
            break
    for beginning in sorted(filter(None, prefixes), key=len, reverse=True):
        if name.startswith(f"{beginning}-"):
            name = name.removeprefix(f"{beginning}-")
            break
    words = name.split("-")
    while len(words) > 1 and words[-1] in _STYLES:
        words.pop()
    while len(words) > 1 and words[0] in _STYLES:
        words.pop(0)
    if words[-1] in _STYLES or any(word in _BRANDS or word in _RESERVED for word in words):
        return None
    table = _synonyms()
    whole = table.get(_key(words))
    if whole is not None:
        return whole
    parts = [known if "-" not in (known := table.get((word,), word)) else word for word in words]
    return table.get(_key(parts)) or "-".join(_key(parts))


def is_plain(name: str, found: str) -> bool:
    """Return whether a name is the concept's own, without further words."""
    return _key(name.split("-")) == _key(found.split("-"))


def group_of(found: str) -> str:
    """Return the group of a concept: its words that say what the thing is, so that variants of a thing stay together.

    `folder-plus` and `folder` are in `folder`; signs alone, such as `circle-plus`, are in `sign`.
    """
    return "-".join(word for word in found.split("-") if word not in _MODIFIERS) or "sign"
