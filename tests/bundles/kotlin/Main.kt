// Runs the parts of the wrappers that need no Android on cases of samples.py. One line in, one line out.
import edgeforge.digits_demo_phone.Images
import edgeforge.mails_phone.WordPiece
import edgeforge.tales_phone.SelfTest
import java.util.Base64

fun main() {
    for (line in generateSequence(::readlnOrNull)) {
        val words = line.split(' ')
        val rest = words.drop(1)
        println(
            when (words[0]) {
                "image" -> image(rest)
                "answers" -> answers(rest)
                else -> text(rest)
            }
        )
    }
}

/** width height channels newWidth newHeight mean,.. std,.. argb,.. -> pixels,.. values,.. */
private fun image(words: List<String>): String {
    val (width, height, channels, newWidth, newHeight) = words.take(5).map { it.toInt() }
    val (mean, std) = words.subList(5, 7).map { list -> list.split(',').map { it.toDouble() }.toDoubleArray() }
    val argb = words[7].split(',').map { it.toLong().toInt() }.toIntArray()
    val pixels = Images.resize(Images.fromArgb(argb, width, height, channels), newWidth, newHeight)
    val values = Images.normalise(pixels, mean, std)
    return pixels.data.joinToString(",") { (it.toInt() and 0xff).toString() } + " " + values.joinToString(",")
}

/** flags prefix longest unknown before after special max right vocabulary text, texts in Base64 -> ids,.. */
private fun text(words: List<String>): String {
    val (flags, prefix, longest, unknown, before) = words
    val special = decode(words[6]).split('\n').filter { it.isNotEmpty() }.associate {
        it.substringBeforeLast(' ') to it.substringAfterLast(' ').toInt()
    }
    val settings = WordPiece.Settings(
        lowercase = flags[0] == '1',
        stripAccents = flags[1] == '1',
        cleanText = flags[2] == '1',
        handleChineseChars = flags[3] == '1',
        prefix = decode(prefix),
        longestWord = longest.toInt(),
        unknown = decode(unknown),
        before = before.toInt(),
        after = words[5].toInt(),
        special = special,
        maxLength = words[7].toInt(),
        cutsRight = words[8] == "1",
    )
    return WordPiece(decode(words[9]).split('\n').dropLast(1), settings).encode(decode(words[10])).joinToString(",")
}

/** required recorded found recorded found.., texts in Base64 -> passed agreement */
private fun answers(words: List<String>): String {
    val given = words.drop(1).map { decode(it) }.chunked(2).map { (recorded, found) -> SelfTest.Answer("", recorded, found) }
    return SelfTest(given, words[0].toDouble()).let { "${it.passed} ${it.agreement}" }
}

private fun decode(text: String): String = String(Base64.getDecoder().decode(text), Charsets.UTF_8)
