// Just enough of this package's API to type-check the sample.

package android.widget
import android.view.*
open class TextView(c: Context) : View(c) { var text: CharSequence = "" }
class EditText(c: Context) : TextView(c)
class Button(c: Context) : TextView(c)
class LinearLayout(c: Context) : View(c) { var orientation = 0
    fun addView(v: View) {}
    companion object { const val VERTICAL = 1 } }
